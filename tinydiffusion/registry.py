"""Kind + name -> plug-in. Each file in the kind's folder is a plug-in, named as the file."""

import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

KINDS = {
    "dataset": "datasets",
    "text_encoder": "text_encoders",
    "network": "networks",
    "sampler": "samplers",
    "objective": "objectives",
    "evaluator": "evaluators",
    "feature_extractor": "feature_extractors",
}
"""Plug-in kind -> folder of this package, and entry-point group `tinydiffusion.<folder>`."""


LIMIT = 2**63
"""Bound of the numbers in settings: the code that computes with them holds no larger ones."""
MAX_SHOWN = 200


class PluginError(ValueError):
    """A plug-in that does not exist, does not load or does not take the given options."""


class BrokenPluginError(PluginError):
    """A plug-in that exists but cannot be imported."""


def builtin_names(kind: str) -> list[str]:
    """List the built-in plug-ins of a kind: its folder's public file names, sorted."""
    folder = Path(__file__).parent / KINDS[kind]
    return sorted(p.stem for p in folder.glob("*.py") if not p.stem.startswith("_"))


def installed(kind: str) -> dict[str, EntryPoint]:
    """Find the third-party plug-ins of a kind by name.

    Raises:
        PluginError: two distributions, or one and a built-in, claim the same name.
    """
    found: dict[str, EntryPoint] = {}
    builtin = builtin_names(kind)
    for point in entry_points(group=f"tinydiffusion.{KINDS[kind]}"):
        rival = "tinydiffusion" if point.name in builtin else None
        if point.name in found and found[point.name].value != point.value:
            rival = found[point.name].value
        if rival:
            raise PluginError(f"{kind} {point.name!r} is claimed by {rival} and by {point.value}")
        found[point.name] = point
    return found


def names(kind: str) -> list[str]:
    """List the names of all plug-ins of a kind, built-in and installed."""
    return sorted([*builtin_names(kind), *installed(kind)])


def origin(kind: str, name: str) -> str:
    """Return a plug-in's origin: "built-in", or its `module:attribute` and distribution."""
    point = installed(kind).get(name)
    if point is None:
        return name if ":" in name else "built-in"
    return f"{point.value} of {point.dist.name} {point.dist.version}" if point.dist else point.value


def load(kind: str, name: str) -> Callable[..., Any]:
    """Import a plug-in's class or function.

    A built-in is the object that its file names in `PLUGIN`. `name` may also be
    `module:attribute`, for code that is not installed as a package.

    Raises:
        PluginError: there is no such plug-in; the message lists the existing ones.
        BrokenPluginError: it cannot be imported.
    """
    if ":" in name:
        return _load_attribute(kind, name, name)
    if name in builtin_names(kind):
        return importlib.import_module(f"tinydiffusion.{KINDS[kind]}.{name}").PLUGIN
    others = installed(kind)
    if name in others:
        return _load_attribute(kind, name, others[name].value)
    known = names(kind)
    raise PluginError(
        f"unknown {kind} {name!r}{suggest(name, known)}; there are {', '.join(known)}"
    )


def create(kind: str, name: str, **options: Any) -> Any:
    """Call a plug-in with its options, after checking that it takes them.

    Raises:
        PluginError: see `check_options`.
    """
    plugin = load(kind, name)
    check_options(kind, name, plugin, options)
    types = {n: p.annotation for n, p in (options_of(plugin) or {}).items()}
    return plugin(**{n: with_fractions(v, types.get(n)) for n, v in options.items()})


def check_options(
    kind: str, name: str, plugin: Callable[..., Any], options: Mapping[str, Any]
) -> None:
    """Raise PluginError where an option is unknown to a plug-in, of a wrong type or missing."""
    allowed = options_of(plugin)
    if allowed is None:
        return
    for option, value in options.items():
        if option not in allowed:
            listed = ", ".join(allowed) or "none"
            raise PluginError(
                f"{kind} {name!r} has no option {option!r}{suggest(option, list(allowed))}; "
                f"its options are {listed}"
            )
        if wrong := complaint(value, allowed[option].annotation):
            raise PluginError(f"option {option!r} of {kind} {name!r} {wrong}")
    check_complete(kind, name, allowed, options)


def check_complete(
    kind: str, name: str, allowed: Mapping[str, inspect.Parameter], options: Iterable[str]
) -> None:
    """Raise PluginError where an option without a default is not among those given."""
    needed = [n for n, p in allowed.items() if p.default is inspect.Parameter.empty]
    if missing := [n for n in needed if n not in options]:
        raise PluginError(f"{kind} {name!r} needs the option {missing[0]!r}")


def options_of(plugin: Callable[..., Any]) -> dict[str, inspect.Parameter] | None:
    """Return a plug-in's options, its keyword-only arguments; None where it takes any."""
    parameters = inspect.signature(plugin).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return None
    return {n: p for n, p in parameters.items() if p.kind is p.KEYWORD_ONLY}


def path_options(kind: str, name: str) -> set[str]:
    """List the options of a plug-in that name files or folders: those that may be a `Path`.

    Raises:
        PluginError: there is no such plug-in.
    """
    plugin: Any = load(kind, name)
    makers = [plugin, plugin.from_captions] if kind == "text_encoder" else [plugin]
    options = [item for maker in makers for item in (options_of(maker) or {}).items()]
    return {n for n, p in options if Path in (p.annotation, *get_args(p.annotation))}


def takes(plugin: Callable[..., Any], option: str) -> bool:
    """Return whether the plug-in declares this keyword argument."""
    return option in inspect.signature(plugin).parameters


def complaint(value: Any, annotation: Any) -> str | None:
    """Describe what is wrong with a setting, such as "must be int, got 'x'"; None if nothing is."""
    if not fits(value, annotation):
        return f"must be {type_name(annotation)}, got {shown(value)}"
    if any(not -LIMIT <= number < LIMIT for number in _numbers(value)):
        return f"must be finite and within 2**63, got {shown(value)}"
    return None


def with_fractions(value: Any, annotation: Any) -> Any:
    """Convert whole numbers in a value to floats where the annotation requires floats."""
    arguments = get_args(annotation)
    if type(value) is int and int not in arguments and float in (annotation, *arguments):
        return float(value)
    if isinstance(value, list | tuple) and arguments:
        return type(value)(with_fractions(item, arguments[0]) for item in value)
    return value


def shown(value: Any) -> str:
    """Format a value for a message: in one line of at most MAX_SHOWN characters and "..."."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def fits(value: Any, annotation: Any) -> bool:
    """Return whether a value from a YAML file has the annotated type.

    Annotations that YAML has no type for, such as our own classes, fit any value.
    """
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin in (Union, UnionType):
        return any(fits(value, argument) for argument in arguments)
    if origin is Literal:
        return value in arguments
    if origin in (list, tuple, Sequence):
        fixed = origin is tuple and Ellipsis not in arguments
        return (
            isinstance(value, (list, tuple))
            and all(fits(v, arguments[0]) for v in value)
            and (len(value) == len(arguments) or not fixed)
        )
    if origin in (dict, Mapping):
        return isinstance(value, dict) and all(
            isinstance(k, str) and fits(v, arguments[1]) for k, v in value.items()
        )
    if annotation in (int, float) and isinstance(value, bool):
        return False
    return isinstance(value, YAML_TYPES.get(annotation, object))


YAML_TYPES = {
    int: int,
    float: (int, float),
    bool: bool,
    str: str,
    NoneType: NoneType,
    Path: (str, Path),
}


def type_name(annotation: Any) -> str:
    """Format an annotation for users of YAML: without module names, each kind of list as `list`."""
    if get_origin(annotation) is Literal:
        return " | ".join(map(str, get_args(annotation)))
    name = re.sub(r"(\w+\.)+(?=\w)", "", inspect.formatannotation(annotation))
    return re.sub(r"tuple|Sequence", "list", name).replace(", ...", "")


def suggest(word: str, known: list[str]) -> str:
    """Return `" (did you mean 'x'?)"` for the nearest known word, else the empty string."""
    near = nearest(word, known)
    return "" if near is None else f" (did you mean {near!r}?)"


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Find the known word that is the fewest edits away; None where no similarity is `cutoff`."""
    close = difflib.get_close_matches(word, list(known), n=3, cutoff=cutoff)
    return min(close, key=lambda candidate: _edits(word, candidate), default=None)


def _edits(a: str, b: str) -> int:
    """Count letters to insert, delete or replace, and neighbours to exchange (Damerau 1964)."""
    rows = [list(range(len(b) + 1))]
    for i, x in enumerate(a, 1):
        rows.append([i])
        for j, y in enumerate(b, 1):
            ways = [rows[i - 1][j] + 1, rows[i][-1] + 1, rows[i - 1][j - 1] + (x != y)]
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                ways.append(rows[i - 2][j - 2] + 1)
            rows[i].append(min(ways))
    return rows[-1][-1]


def _numbers(value: Any) -> Iterator[int | float]:
    """Yield every number in a value of dicts and lists."""
    if isinstance(value, int | float):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _numbers(item)


def _load_attribute(kind: str, name: str, path: str) -> Callable[..., Any]:
    """Import the object at `module:attribute`."""
    module, _, attribute = path.partition(":")
    try:
        plugin = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # any error: importing runs the plug-in's own code
        reason = str(error) or type(error).__name__
        raise BrokenPluginError(f"cannot load {kind} {name!r}: {reason}") from error
    if not callable(plugin):
        raise BrokenPluginError(f"cannot load {kind} {name!r}: {plugin!r} is not callable")
    return plugin
