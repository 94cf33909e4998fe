"""Proves that settings survive every round trip, and that no mistake in them is accepted."""

import dataclasses
import string
from pathlib import Path

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tinydiffusion import registry
from tinydiffusion.build import takes_teacher
from tinydiffusion.config import (
    PLUGIN_SECTIONS,
    Config,
    ConfigError,
    DiffusionConfig,
    EvaluationConfig,
    SamplingConfig,
    TrainingConfig,
    from_dict,
    help_text,
    load,
    plugin,
    save,
    to_dict,
)

ROOT = Path(__file__).parents[1]
TYPED = {
    "diffusion": DiffusionConfig,
    "training": TrainingConfig,
    "sampling": SamplingConfig,
    "evaluation": EvaluationConfig,
}
KEYS = [
    *(field.name for field in dataclasses.fields(Config)),
    *(f"{section}.{f.name}" for section, kind in TYPED.items() for f in dataclasses.fields(kind)),
]
UNUSUAL = Config(
    dataset={"name": "folder", "path": "my/pictures: red", "flip": True, "limit": None},
    validation={"path": "other"},
    network={"name": "unet", "channels": [32, 64], "dropout": 1e-5},
    training=TrainingConfig(max_minutes=1.5, betas=(0.5, 0.75), precision="bfloat16"),
    sampling=SamplingConfig(
        guidance_interval=(1e-5, 3.0),
        prompts=("a dog 🙂", "yes", "null", "1e-4", "- a: [b", "", " x "),
    ),
    evaluation=EvaluationConfig(metrics=("pixel_fd",), options={"pixel_fd": {"size": 4}}),
    seed=7,
)


def complaint(call) -> str:
    """The message of the ConfigError, which has one line."""
    with pytest.raises(ConfigError) as caught:
        call()
    message = str(caught.value)
    assert message
    assert "\n" not in message
    return message


def written(folder, text) -> Path:
    file = folder / "run.yaml"
    file.write_text(text)
    return file


# ---- round trips -----------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [Config(), UNUSUAL])
def test_nothing_is_lost_in_a_dict_or_a_file(settings, tmp_path):
    assert from_dict(to_dict(settings)) == settings
    save(settings, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == settings


def test_a_dict_is_plain_and_a_copy():
    values = to_dict(UNUSUAL)
    assert values["training"]["betas"] == [0.5, 0.75]
    assert values["evaluation"]["metrics"] == ["pixel_fd"]
    values["network"]["channels"].append(1)
    assert UNUSUAL.network["channels"] == [32, 64]


@hypothesis.settings(
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture],
    max_examples=50,
    deadline=None,
)
@hypothesis.example(prompt="two\x85lines")
@hypothesis.example(prompt="\u2028")
@given(prompt=st.text() | st.from_regex(r"[-+]?[0-9.eE:_x~]{1,6}"))
def test_any_prompt_survives_in_a_file(prompt, tmp_path):
    asked = Config(sampling=SamplingConfig(prompts=(prompt,)), dataset={"name": prompt})
    save(asked, tmp_path / "run.yaml")
    assert load(tmp_path / "run.yaml") == asked


def test_what_is_not_given_has_its_default(tmp_path):
    file = written(tmp_path, "training: {batch_size: 8}\n")
    assert load(file) == Config(training=TrainingConfig(batch_size=8))
    assert load() == Config()
    assert load(written(tmp_path, "# a comment alone\n")) == Config()


@pytest.mark.parametrize("file", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda f: f.stem)
def test_every_config_of_the_repository_loads(file):
    settings = load(file)
    assert from_dict(to_dict(settings)) == settings
    for section in ("dataset", "network", "objective"):
        name, options = plugin(getattr(settings, section))
        needed = {
            "network": {"text_dim": 1, "pooled_dim": 1},
            "objective": {"denoiser": None, "text_encoder": None},
        }
        if section == "objective" and takes_teacher(settings):
            needed["objective"]["teacher"] = None
        loaded = registry.load(section, name)
        registry.check_options(section, name, loaded, {**options, **needed.get(section, {})})
    name, options = plugin({**settings.dataset, **(settings.validation or {})})
    registry.check_options("dataset", name, registry.load("dataset", name), options)
    for metric in settings.evaluation.metrics:
        assert metric in registry.names("evaluator")


# ---- flags -----------------------------------------------------------------------------------


def test_flags_go_over_the_file(tmp_path):
    file = written(tmp_path, "training: {batch_size: 8, log_every: 5}\nvalidation: {size: 64}\n")
    flags = ["--training.batch_size", "16", "--seed=3", "--validation.split", "held_out"]
    settings = load(file, [*flags, "--training.betas", "[0.5, 0.6]", "--network.channels=[8, 16]"])
    assert settings.training == TrainingConfig(batch_size=16, log_every=5, betas=(0.5, 0.6))
    assert settings.seed == 3
    assert settings.validation == {"size": 64, "split": "held_out"}
    assert settings.network == {"name": "unet", "channels": [8, 16]}


def test_a_section_may_be_given_or_switched_off_as_a_whole(tmp_path):
    file = written(tmp_path, "validation: {size: 64}\n")
    assert load(file, ["--validation", "null"]).validation is None
    assert load(None, ["--dataset", "{name: folder, path: a}"]).dataset["path"] == "a"
    assert load(None, ["--validation.size", "64"]).validation == {"size": 64}


def test_the_last_of_two_flags_counts():
    assert load(None, ["--seed", "1", "--seed", "2"]).seed == 2


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seed"], "--seed has no value"),
        (["stray"], "unknown argument 'stray'"),
        (["--seed", "1", "stray"], "unknown argument 'stray'"),
        (["-seed", "1"], "unknown argument '-seed'"),
        (["--seed.x", "1"], "--seed.x cannot be set: seed holds 0, not keys"),
        (["--network", "5", "--network.name", "unet"], "network holds 5, not keys"),
        (["--dataset", '{"a\\nb": 1e999}'], r"dataset.'a\nb' must be finite"),
        (["--sampling.prompts", "[a"], "--sampling.prompts:1:3: while parsing a flow sequence"),
        (["--dataset", "{name: a, name: b}"], "--dataset:1:11: the key 'name' is given twice"),
        (["--seed", "!!python/object/apply:os.getcwd []"], "--seed:1:1: tags (!) are not read"),
        (["--seed", "*a"], "--seed:1:1: anchors (&) and aliases (*) are not read"),
        (["--dataset.path", "caf\udce9"], "--dataset.path:1:4: the character '\\udce9' is refused"),
    ],
)
def test_flags_that_cannot_be_read(flags, message):
    assert message in complaint(lambda: load(None, flags))


# ---- types -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", "+1e-4", ".1e-3", "100e-6"])
def test_numbers_with_an_exponent_are_numbers(tmp_path, text):
    content = f"training: {{learning_rate: {text}}}\nobjective: {{name: denoising, gamma: {text}}}"
    by_file = load(written(tmp_path, content))
    by_flag = load(None, [f"--training.learning_rate={text}", f"--objective.gamma={text}"])
    for run in (by_file, by_flag):
        assert run.training.learning_rate == pytest.approx(1e-4)
        assert run.objective["gamma"] == pytest.approx(1e-4)


@pytest.mark.parametrize("text", ["1e", "e4", "1e-4x", "a1e-4", "1 e-4"])
def test_words_that_look_like_numbers_are_words(text):
    assert load(None, [f"--sampling.prompts=[{text}]"]).sampling.prompts == (text,)


def test_a_whole_number_will_do_for_a_fraction():
    training = load(None, ["--training.learning_rate=1", "--training.max_minutes=2"]).training
    assert [type(x) for x in (training.learning_rate, training.max_minutes)] == [float, float]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.batch_size", "three", "int"),
        ("training.batch_size", "3.5", "int"),
        ("training.batch_size", "1.0", "int"),
        ("training.batch_size", "true", "int"),
        ("training.batch_size", "null", "int"),
        ("training.batch_size", "'3'", "int"),
        ("training.batch_size", "[3]", "int"),
        ("training.learning_rate", "true", "float"),
        ("training.learning_rate", "fast", "float"),
        ("training.learning_rate", "null", "float"),
        ("training.max_minutes", "long", "float | None"),
        ("training.tensorboard", "1", "bool"),
        ("training.tensorboard", "'yes'", "bool"),
        ("training.precision", "float16", "auto | float32 | bfloat16"),
        ("training.device", "0", "str"),
        ("training.betas", "[0.9]", "list[float, float]"),
        ("training.betas", "[0.9, 0.9, 0.9]", "list[float, float]"),
        ("training.betas", "0.9", "list[float, float]"),
        ("sampling.guidance_interval", "[0.5]", "list[float, float] | None"),
        ("sampling.prompts", "a red circle", "list[str]"),
        ("sampling.prompts", "[1, two]", "list[str]"),
        ("evaluation.metrics", "pixel_fd", "list[str]"),
        ("evaluation.options", "{pixel_fd: 3}", "dict[str, dict[str, Any]]"),
        ("evaluation.reference", "valid", "train | validation"),
        ("seed", "1.0", "int"),
        ("seed", "null", "int"),
        ("dataset", "scenes", "dict[str, Any]"),
        ("dataset", "null", "dict[str, Any]"),
    ],
)
def test_a_wrong_type_names_key_value_and_type(tmp_path, key, value, expected):
    by_flag = complaint(lambda: load(None, [f"--{key}", value]))
    assert by_flag.startswith(f"{key} must be {expected}, got ")
    section, _, name = key.rpartition(".")
    text = f"{section}: {{{name}: {value}}}" if section else f"{name}: {value}"
    assert complaint(lambda: load(written(tmp_path, text))) == by_flag


@pytest.mark.parametrize("value", ["5", "null", "[1]", "text"])
def test_a_section_must_hold_keys(tmp_path, value):
    message = complaint(lambda: load(written(tmp_path, f"training: {value}")))
    assert message.startswith("training must hold keys, got")


@pytest.mark.parametrize("section", PLUGIN_SECTIONS)
@pytest.mark.parametrize("content", [{}, {"name": None}, {"name": 5}, {"nme": "unet"}])
def test_a_plugin_section_needs_a_name(section, content):
    message = complaint(lambda: from_dict({section: content}))
    assert message.startswith(f"{section}.name must be the name of a plug-in, got {{")


def test_a_validation_section_may_leave_out_the_name_but_not_misuse_it():
    assert from_dict({"validation": {"size": 3}}).validation == {"size": 3}
    assert "validation.name" in complaint(lambda: from_dict({"validation": {"name": 3}}))


# ---- unknown keys ----------------------------------------------------------------------------


@given(st.text(alphabet=string.ascii_lowercase + "_.", min_size=1))
def test_no_other_word_is_accepted(word):
    if word not in KEYS and word.split(".")[0] not in (*PLUGIN_SECTIONS, "validation"):
        assert complaint(lambda: load(None, [f"--{word}", "1"]))


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("training.batch_sise", " (did you mean 'training.batch_size'?)"),
        ("sampling.guidence_scale", " (did you mean 'sampling.guidance_scale'?)"),
        ("trainig", " (did you mean 'training'?)"),
        ("sed", " (did you mean 'seed'?)"),
        ("learning_rate", " (did you mean 'training.learning_rate'?)"),
        ("learnin_rate", " (did you mean 'training.learning_rate'?)"),
        ("batch-size", " (did you mean 'training.batch_size'?)"),
        ("training.sampler", " (did you mean 'sampling.sampler'?)"),
        ("sampling.prompt", " (did you mean 'sampling.prompts'?)"),
        ("training.batch-size", " (did you mean 'training.batch_size'?)"),
        ("training.Batch_Size", " (did you mean 'training.batch_size'?)"),
        ("Training", " (did you mean 'training'?)"),
        ("text-encoder", " (did you mean 'text_encoder'?)"),
        ("evaluation.seed", " (did you mean 'seed'?)"),
        ("diffusion.zzzzzz", "; there are schedule, "),
        ("zzzzzz", "; there are dataset, validation, "),
    ],
)
def test_the_nearest_key_is_suggested(key, hint):
    message = complaint(lambda: load(None, [f"--{key}", "1"]))
    assert message.startswith(f"unknown key '{key}'{hint}")


# ---- help ------------------------------------------------------------------------------------


def test_help_explains_every_key_once():
    lines = help_text().splitlines()
    flags = [line.split(":")[0].strip() for line in lines if line.startswith("  --")]
    assert flags == [f"--{key}" for key in in_order()]
    assert '  --training.precision: auto | float32 | bfloat16 = "auto"' in lines
    meanings = [line for line in lines if not line.startswith("  --")]
    assert len(meanings) == len(flags)
    assert all(line.strip().endswith(".") for line in meanings)


def in_order() -> list[str]:
    """Every key that holds a value, as the dataclasses list them."""
    return [
        key
        for field in dataclasses.fields(Config)
        for key in ([k for k in KEYS if k.startswith(f"{field.name}.")] or [field.name])
    ]
