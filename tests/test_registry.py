"""Proves that plug-ins are found without being imported, and that mistakes name what there is."""

import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.registry import KINDS, PluginError, check_options, create, fits, load, names

BUILT_IN = {
    "dataset": {"folder", "huggingface", "scenes"},
    "text_encoder": {"clip", "open_clip"},
    "network": {"unet"},
    "sampler": {"ddim", "ddpm", "diffusers", "dpmpp_2m", "euler", "heun"},
    "objective": {"denoising", "distillation"},
    "evaluator": {
        *("clip_score", "fd", "fd_dinov2", "fid", "fid_clean", "fid_pt", "inception_score", "kid"),
        *("pixel_fd", "prdc", "retrieval", "scene_accuracy"),
    },
    "feature_extractor": {"classifier", "dinov2", "inception", "open_clip", "pixels"},
}


class Wheel:
    """A plug-in for these tests."""

    def __init__(self, *, spokes: int, colour: str = "red", weights: Sequence[float] = ()):
        self.spokes, self.colour = spokes, colour


def liberal(*, needed, **options):
    return {"needed": needed, **options}


@pytest.fixture
def entry_points(monkeypatch):
    """Sets the entry points that are installed in a group."""

    def install(group, *points):
        def installed(*, group: str):
            return [EntryPoint(name, value, group) for name, value in groups.get(group, ())]

        groups = {group: points}
        monkeypatch.setattr(registry, "entry_points", installed)

    return install


# ---- names -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_every_file_is_a_plugin_under_its_name(kind):
    assert set(names(kind)) >= BUILT_IN[kind]
    assert names(kind) == sorted(names(kind))
    for name in registry.builtin_names(kind):
        assert callable(load(kind, name)), name


def test_looking_for_plugins_imports_none_of_them():
    program = (
        "import sys; from tinydiffusion import registry\n"
        "for kind in registry.KINDS: registry.names(kind)\n"
        "mine = [m for m in sys.modules if m.startswith('tinydiffusion.')]\n"
        "sys.exit(f'{mine}' if 'torch' in sys.modules or mine != ['tinydiffusion.registry'] else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize(
    ("name", "hint"), [("eulr", " (did you mean 'euler'?)"), ("zzz", ""), ("", ""), ("_check", "")]
)
def test_an_unknown_plugin_lists_the_known_and_suggests(name, hint):
    with pytest.raises(PluginError) as caught:
        load("sampler", name)
    known = ", ".join(names("sampler"))
    assert str(caught.value) == f"unknown sampler {name!r}{hint}; there are {known}"


# ---- entry points ----------------------------------------------------------------------------


def test_an_installed_plugin_is_found_and_loaded(entry_points):
    entry_points("tinydiffusion.evaluators", ("wheel", f"{__name__}:Wheel"))
    assert "wheel" in names("evaluator")
    assert "wheel" not in names("sampler")
    assert load("evaluator", "wheel").__name__ == "Wheel"
    assert create("evaluator", "wheel", spokes=3).spokes == 3


def test_two_distributions_with_one_name_are_both_named(entry_points):
    entry_points("tinydiffusion.samplers", ("fast", "one_package:f"), ("fast", "another:g"))
    with pytest.raises(PluginError, match=r"'fast' is claimed by one_package:f and by another:g"):
        names("sampler")


def test_the_same_entry_point_twice_is_no_clash(entry_points):
    """An editable install beside a stale one."""
    entry_points("tinydiffusion.samplers", ("fast", "one_package:f"), ("fast", "one_package:f"))
    assert names("sampler").count("fast") == 1


def test_a_built_in_name_cannot_be_taken_over(entry_points):
    entry_points("tinydiffusion.samplers", ("euler", "rival:sample"))
    with pytest.raises(
        PluginError, match="'euler' is claimed by tinydiffusion and by rival:sample"
    ):
        names("sampler")


def test_an_installed_plugin_that_cannot_be_imported_is_named(entry_points):
    entry_points("tinydiffusion.samplers", ("fast", "no_such_package:f"))
    with pytest.raises(PluginError, match=r"cannot load sampler 'fast': .*no_such"):
        load("sampler", "fast")


# ---- module:attribute ------------------------------------------------------------------------


def test_a_plugin_may_be_named_by_module_and_attribute():
    assert create("network", f"{__name__}:Wheel", spokes=5).spokes == 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no_such_module:thing", "No module named 'no_such_module'"),
        (f"{__name__}:Bicycle", "has no attribute 'Bicycle'"),
        (f"{__name__}:", "has no attribute"),
        (":Wheel", "Empty module name"),
        ("math:pi", "is not callable"),
    ],
)
def test_a_name_that_leads_nowhere_is_an_error(name, message):
    with pytest.raises(PluginError, match=f"cannot load network {name!r}.*{message}"):
        load("network", name)


# ---- options ---------------------------------------------------------------------------------


def test_create_passes_the_options_on():
    wheel = create("network", f"{__name__}:Wheel", spokes=3, colour="blue")
    assert (wheel.spokes, wheel.colour) == (3, "blue")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"spokes": 3, "color": "blue"},
            "network 'wheel' has no option 'color' (did you mean 'colour'?); "
            "its options are spokes, colour, weights",
        ),
        (
            {"zzz": 1},
            "network 'wheel' has no option 'zzz'; its options are spokes, colour, weights",
        ),
        ({}, "network 'wheel' needs the option 'spokes'"),
        ({"colour": "red"}, "network 'wheel' needs the option 'spokes'"),
        ({"spokes": "many"}, "option 'spokes' of network 'wheel' must be int, got 'many'"),
        ({"spokes": True}, "option 'spokes' of network 'wheel' must be int, got True"),
        (
            {"spokes": 3, "weights": "1"},
            "option 'weights' of network 'wheel' must be list[float], got '1'",
        ),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(PluginError) as caught:
        check_options("network", "wheel", Wheel, options)
    assert str(caught.value) == message


def test_a_plugin_that_takes_any_option_gets_any():
    check_options("network", "liberal", liberal, {"needed": 1, "whatever": 2})


def test_positional_arguments_are_no_options():
    with pytest.raises(PluginError, match="no option 'denoise'"):
        check_options("sampler", "euler", load("sampler", "euler"), {"denoise": 1})


@pytest.mark.parametrize(
    ("word", "known", "near"),
    [
        ("evaliation", ["validation", "evaluation"], "evaluation"),  # not by the share of letters
        ("guidanc_escale", ["guidance_rescale", "guidance_scale"], "guidance_scale"),
        ("abcd", ["bacd", "axyd"], "bacd"),
        ("zzzz", ["size"], None),
        ("a", [], None),
    ],
)
def test_the_nearest_word_is_the_one_with_the_fewest_edits(word, known, near):
    assert registry.nearest(word, known) == registry.nearest(word, known[::-1]) == near


@pytest.mark.parametrize(
    ("value", "annotation", "expected"),
    [
        (1, float, 1.0),
        (1, float | None, 1.0),
        (None, float | None, None),
        (1, int, 1),
        (1, int | float, 1),
        (1, Any, 1),
        (True, float, True),  # refused before it comes here
        ([1, 2.5], Sequence[float], [1.0, 2.5]),
        ((0, 1), tuple[float, float], (0.0, 1.0)),
        ([1], Sequence[int], [1]),
        (["1"], list[str], ["1"]),
    ],
)
def test_a_whole_number_will_do_for_a_fraction(value, annotation, expected):
    given = registry.with_fractions(value, annotation)
    assert repr(given) == repr(expected)


def test_takes_says_what_is_declared():
    assert registry.takes(Wheel, "spokes")
    assert not registry.takes(Wheel, "gears")


# ---- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("annotation", "fitting", "others"),
    [
        (int, [0, -1], [1.0, True, "1", None, [1]]),
        (float, [0, 1.5, -1], [True, "1.5", None]),
        (bool, [True, False], [0, 1, "yes", None]),
        (str, ["", "a"], [1, None, ["a"]]),
        (int | None, [None, 3], ["3", False]),
        (str | Path, ["a", Path("a")], [2024, None]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (Sequence[int], [[], [1, 2], (1,)], ["12", 1, [1.5], [True], {1: 2}]),
        (list[str], [["a"]], ["a", [1]]),
        (tuple[str, ...], [[], ["a", "b"]], ["a", [1]]),
        (tuple[float, float], [[1, 2.0]], [[1], [1, 2, 3], 1]),
        (dict[str, Any], [{}, {"a": 1}], [[], None, "a"]),
        (Mapping[str, int], [{"a": 1}], [{"a": "b"}]),
        (dict[str, Any] | None, [None, {}], [0]),
        (Any, [None, 1, "a"], []),
        (torch.Generator, [None, 1], []),  # not from a YAML file: none of our business
    ],
)
def test_values_fit_their_annotation(annotation, fitting, others):
    for value in fitting:
        assert fits(value, annotation), value
    for value in others:
        assert not fits(value, annotation), value
