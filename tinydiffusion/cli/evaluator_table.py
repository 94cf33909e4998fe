"""`tinydiffusion evaluators`: every metric and feature extractor, its origin and what it needs."""

import ast
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tinydiffusion import registry
from tinydiffusion.config import ConfigError
from tinydiffusion.evaluation.rows import stdout_console

KINDS = ("evaluator", "feature_extractor")
ALWAYS = {"tinydiffusion", "torch", "numpy", "jaxtyping", "einops"}

BROKEN = 1


def evaluators(name: str | None) -> int:
    """List evaluators and feature extractors, or describe the named one with its options.

    Returns:
        The exit code: 1 where one that is listed is broken, else 0.
    """
    console = stdout_console()
    if name is not None:
        return _describe(name, console)
    broken = []
    for kind in KINDS:
        table = Table(title=f"{kind.replace('_', ' ')}s", title_justify="left")
        for column in ("name", "needs", "packages", "origin"):
            table.add_column(column, overflow="fold")
        for each in registry.names(kind):
            try:
                plugin = registry.load(kind, each)
            except registry.BrokenPluginError as error:
                broken.append(str(error))
                table.add_row(each, "", "broken", registry.origin(kind, each))
                continue
            needs = ", ".join(_needs(plugin))
            table.add_row(each, needs, ", ".join(packages(plugin)), registry.origin(kind, each))
        console.print(table)
    for reason in broken:
        console.print(f"broken: {reason}", soft_wrap=True)
    return BROKEN if broken else 0


def packages(plugin: Callable[..., Any]) -> list[str]:
    """List the packages that a plug-in imports besides `ALWAYS`, with a mark on missing ones."""
    imported = {name for tree in _trees(plugin.__module__) for name in _imported(tree)}
    names = sorted({name.partition(".")[0] for name in imported} - ALWAYS)
    known = _distributions()
    return [
        known.get(name, [name])[0] + ("" if importlib.util.find_spec(name) else " (missing)")
        for name in names
        if name not in sys.stdlib_module_names
    ]


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Map each module to the distributions that have it; cached, as the search is slow."""
    return packages_distributions()


def _needs(plugin: Callable[..., Any]) -> list[str]:
    """List what a plug-in needs: sources, prompts, extractor, and weights if an option."""
    options = registry.options_of(plugin) or {}
    weights = ["weights"] if {"weights", "model"} & options.keys() else []
    return [*getattr(plugin, "needs", ()), *weights, *_extractors(plugin, options)]


def _extractors(plugin: Callable[..., Any], options: Mapping[str, Any]) -> list[str]:
    """List the feature extractors that a plug-in uses."""
    if "extractor" in options:
        section = options["extractor"].default
        default = section["name"] if isinstance(section, Mapping) else section
        return [f"extractor (default {default})" if isinstance(default, str) else "extractor"]
    nodes = (node for tree in _trees(plugin.__module__) for node in ast.walk(tree))
    named = set()
    for node in nodes:
        match node:
            case ast.Call(ast.Name("shared_extractor"), [ast.Constant(str(name)), *_]):
                named.add(f"extractor {name}")
    return sorted(named)


def _trees(module: str) -> Iterator[ast.Module]:
    """Yield the syntax trees of a plug-in's file, and of the files that it shares with others."""
    file = sys.modules[module].__file__
    assert file is not None
    tree = ast.parse(Path(file).read_text(encoding="utf-8"))
    yield tree
    shared = (module.rpartition(".")[0] + "._", "tinydiffusion.metrics.")
    for name in _imported(tree):
        if name.startswith(shared) and not name.endswith(".features"):
            yield from _trees(name)


def _imported(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module


def _describe(name: str, console: Console) -> int:
    kinds = [kind for kind in KINDS if ":" in name or name in registry.names(kind)]
    if not kinds:
        known = [each for kind in KINDS for each in registry.names(kind)]
        hint = registry.suggest(name, known)
        raise ConfigError(f"unknown evaluator or feature extractor {name!r}{hint}")
    plugin = registry.load(kinds[0], name)
    console.print(f"{name} ({kinds[0].replace('_', ' ')}, {registry.origin(kinds[0], name)})\n")
    console.print(inspect.getdoc(plugin) or "It has no description.", soft_wrap=True)
    console.print(f"\nneeds: {', '.join(_needs(plugin)) or 'nothing'}")
    if listed := packages(plugin):
        console.print(f"packages: {', '.join(listed)}")
    for option, parameter in (registry.options_of(plugin) or {}).items():
        default = parameter.default
        shown = "required" if default is inspect.Parameter.empty else f"default {default!r}"
        kind = registry.type_name(parameter.annotation)
        console.print(f"--{name}.{option} {kind}; {shown}", soft_wrap=True)
    return 0
