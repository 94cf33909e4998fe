"""Proves that the config reaches the components, and that the same seed builds the same ones."""

import pytest
import torch

from tinydiffusion import registry
from tinydiffusion.abilities import ABILITIES, Fingerprinted, undeclared
from tinydiffusion.build import (
    build_dataset,
    build_evaluators,
    build_objective,
    build_schedule,
    build_validation,
    pick_device,
)
from tinydiffusion.config import Config, ConfigError, DiffusionConfig
from tinydiffusion.diffusion.noise import picture_generators
from tinydiffusion.registry import PluginError
from tinydiffusion.runtime.errors import SettingWarning
from tinydiffusion.survey import SURVEYED, captions_of, spread, survey
from tinydiffusion.training.data_order import Batches

CAPTIONS = ["a red circle", "two blue squares"]


def tiny(**changes) -> Config:
    sections = {
        "dataset": {"name": "scenes", "size": 16, "num_scenes": 8},
        "text_encoder": {"name": "clip", "width": 32, "layers": 1, "heads": 2},
        "network": {"name": "unet", "channels": [32], "layers_per_block": 1},
    }
    return Config(
        **{**sections, "network": {**sections["network"], "attention_levels": []}, **changes}
    )


class Pictures:
    """A data set whose examples can be changed."""

    def __init__(self, count=4):
        self.examples = [
            {
                "image": torch.full((3, 4, 4), i % 256, dtype=torch.uint8),
                "caption": [f"{i} a", f"{i} b"],
                "id": str(i),
            }
            for i in range(count)
        ]
        self.visited = []

    def __len__(self):
        return len(self.examples)

    def __getitem__(self, index):
        self.visited.append(index)
        return self.examples[index]


# ---- data ------------------------------------------------------------------------------------


def test_a_dataset_gets_its_options():
    dataset = build_dataset({"name": "scenes", "size": 20, "num_scenes": 5})
    assert len(dataset) == 5
    assert dataset[0]["image"].shape == (3, 20, 20)


def test_validation_is_as_the_training_set_where_it_says_nothing_else():
    validation = build_validation(tiny(validation={"split": "held_out", "num_scenes": 3}))
    assert len(validation) == 3
    assert validation[0]["image"].shape == (3, 16, 16)
    assert validation[0]["id"].startswith("scenes-held_out")
    assert build_validation(tiny()) is None


def test_validation_by_another_plugin_inherits_nothing(tmp_path):
    config = tiny(validation={"name": "folder", "path": str(tmp_path / "nowhere")})
    with pytest.raises(ValueError, match="no such folder"):  # and not: no option num_scenes
        build_validation(config)


def test_captions_are_always_a_list():
    example = Pictures().examples[0]
    assert captions_of(example) == ["0 a", "0 b"]
    assert captions_of({**example, "caption": "one"}) == ["one"]


def test_a_survey_returns_every_caption_of_a_small_set():
    captions, fingerprints = survey(Pictures(3))
    assert captions == ["0 a", "0 b", "1 a", "1 b", "2 a", "2 b"]
    assert list(fingerprints) == ["0", "1", "2"]


def test_a_survey_of_a_large_set_looks_at_part_of_it():
    pictures = Pictures(SURVEYED + 2500)
    captions, fingerprints = survey(pictures)
    assert len(set(pictures.visited)) == len(captions) / 2 == len(fingerprints) == SURVEYED
    assert max(pictures.visited) > SURVEYED  # the end is seen, too
    assert fingerprints == survey(pictures)[1]


@pytest.mark.parametrize(
    ("change", "differing"),
    [
        (lambda p: p.examples[2]["image"].view(-1)[5].add_(1), {"2"}),
        (lambda p: p.examples[2].update(image=p.examples[2]["image"].view(3, 2, 8)), {"2"}),
        (lambda p: p.examples[2].update(caption=["2 a", "2 c"]), {"2"}),
        (lambda p: p.examples[2].update(caption=["2 a\0002 b"]), {"2"}),
        (lambda p: p.examples[2].update(caption=["2 b", "2 a"]), {"2"}),
        (lambda p: p.examples[2].update(caption="2 a"), {"2"}),
        (lambda p: p.examples[2].update(id="x"), {"2", "x"}),
        (lambda p: p.examples.pop(), {"3"}),
        (lambda p: p.examples.reverse(), set()),
    ],
)
def test_the_fingerprints_name_what_changed(change, differing):
    before, pictures = survey(Pictures(4))[1], Pictures(4)
    change(pictures)
    after = survey(pictures)[1]
    assert {i for i, _ in before.items() ^ after.items()} == differing


def test_the_order_of_the_fingerprints_is_the_data_sets():
    pictures = Pictures(4)
    pictures.examples.reverse()
    assert list(survey(pictures)[1]) == ["3", "2", "1", "0"]


class NamingPictures(Pictures, Fingerprinted):
    def fingerprints(self):
        return {example["id"]: f"sha of {example['id']}" for example in self.examples}


def test_a_set_that_can_name_its_content_names_all_of_it():
    captions, fingerprints = survey(NamingPictures(SURVEYED + 10))
    assert len(captions) == 2 * SURVEYED
    assert len(fingerprints) == SURVEYED + 10
    assert fingerprints["7"] == "sha of 7"


def test_ids_and_captions_may_be_anything_that_a_file_name_can_be():
    pictures = Pictures(2)
    pictures.examples[0].update(id="caf\udce9\n.png", caption="\ud800 lone")
    assert "caf\udce9\n.png" in survey(pictures)[1]


def test_two_examples_of_one_id_are_refused():
    pictures = Pictures(3)
    pictures.examples[2]["id"] = "0"
    with pytest.raises(ValueError, match="two examples of the data set have the id '0'"):
        survey(pictures)


def test_an_empty_set_is_refused():
    with pytest.raises(ValueError, match="the data set is empty"):
        survey(Pictures(0))


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10, 10), (3, 10), (1, 1)])
def test_spread_places_are_different_and_ascend(count, wanted):
    places = spread(count, wanted)
    assert places == sorted(set(places)) == spread(count, wanted)
    assert len(places) == min(count, wanted)
    assert set(places) <= set(range(count))


def test_spread_places_see_every_phase_of_a_period():
    places = torch.tensor(spread(4096, 512))
    for period in (2, 3, 4, 8):
        counts = torch.bincount(places % period, minlength=period)
        assert (counts / 512 * period - 1).abs().max() < 0.35


# ---- components ------------------------------------------------------------------------------


def test_the_schedule_is_the_configs():
    schedule = build_schedule(
        tiny(diffusion=DiffusionConfig(schedule="linear", num_train_timesteps=50))
    )
    assert schedule.num_train_timesteps == 50
    assert schedule.path == "variance_preserving"
    plain, shifted = (
        build_schedule(tiny(diffusion=DiffusionConfig(shift=shift))) for shift in (1.0, 3.0)
    )
    assert (shifted.sigmas[:-1] > plain.sigmas[:-1]).all()
    zero = DiffusionConfig(schedule="linear", prediction_type="sample", zero_terminal_snr=True)
    assert build_schedule(tiny(diffusion=zero)).sigmas[-1] > 1000


def test_components_fit_together_and_get_their_options():
    config = tiny(
        objective={"name": "denoising", "caption_dropout_prob": 0.25, "weighting": "min_snr"},
        diffusion=DiffusionConfig(prediction_type="v_prediction", schedule="cosine"),
    )
    objective = build_objective(config, CAPTIONS, channels=1)
    assert objective.caption_dropout_prob == 0.25
    assert objective.denoiser.prediction_type == "v_prediction"
    assert objective.text_encoder.hidden_size == 32
    image = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    batch = {"image": image, "caption": CAPTIONS, "id": ["0", "1"], "position": [0, 1]}
    loss, _ = objective.loss(batch, picture_generators(0, 0, 2))
    loss.backward()
    assert loss > 0


def test_the_vocabulary_is_learned_from_the_captions():
    encoder = build_objective(tiny(), ["zebra zebra"] * 5).text_encoder
    assert ("z", "e") in encoder.merges or any("zebra" in "".join(pair) for pair in encoder.merges)


def test_the_same_seed_builds_the_same_weights_whatever_happened_before():
    states = []
    for config, before in ((tiny(), 1), (tiny(), 2), (tiny(seed=1), 1)):
        torch.manual_seed(before)
        states.append(build_objective(config, CAPTIONS).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert any(not torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    build_objective(tiny(), CAPTIONS)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("section", "options", "message"),
    [
        ("text_encoder", {"name": "clip", "witdh": 3}, "did you mean 'width'"),
        ("text_encoder", {"name": "clip", "merges": []}, "no option 'merges'"),
        ("text_encoder", {"name": "clp"}, "did you mean 'clip'"),
        ("network", {"name": "unet", "patchsize": 2}, "did you mean 'patch_size'"),
        ("objective", {"name": "denoising", "gama": 2}, "did you mean 'gamma'"),
        ("objective", {"name": "denoisin"}, "did you mean 'denoising'"),
    ],
)
def test_a_misspelt_name_or_option_is_named(section, options, message):
    with pytest.raises(PluginError, match=message):
        build_objective(tiny(**{section: options}), CAPTIONS)


# ---- evaluators, devices ---------------------------------------------------------------------


def test_evaluators_keep_their_order_and_get_their_options():
    evaluators = build_evaluators(["retrieval", "pixel_fd"], {"pixel_fd": {"size": 4}})
    assert list(evaluators) == ["retrieval", "pixel_fd"]
    other = build_evaluators(["pixel_fd"], {})
    assert evaluators["pixel_fd"].provenance() != other["pixel_fd"].provenance()


def test_options_of_a_metric_that_is_not_measured_are_an_error():
    with pytest.raises(ConfigError, match="options for 'pixel_fd', which is not among"):
        build_evaluators(["retrieval"], {"pixel_fd": {"size": 4}})


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert isinstance(pick_device("auto"), torch.device)


@pytest.mark.parametrize("name", ["gpu", "cpu:x", "", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(ConfigError, match=f"training.device '{name}' is not available: ") as caught:
        pick_device(name)
    assert "\n" not in str(caught.value)


# ---- abilities -------------------------------------------------------------------------------


class Misleading(Pictures):
    """Words of abilities that mean something else here."""

    augment = True

    def __init__(self):
        super().__init__()
        self.captions = ["not", "a", "method"]


def test_an_attribute_with_an_abilitys_name_is_no_ability():
    assert undeclared("dataset", Misleading()) == []
    captions, _ = survey(Misleading())
    assert captions[0] == "0 a"
    batches = Batches(Misleading(), batch_size=2)
    assert len(batches.batch_at(0)["caption"]) == 2


class Undeclared(Pictures):
    def augment(self, index, generator):
        raise AssertionError("nobody calls this")


def test_a_method_that_looks_like_an_ability_is_reported(monkeypatch):
    monkeypatch.setattr(registry, "create", lambda *_, **__: Undeclared())
    with pytest.warns(
        SettingWarning, match=r"Undeclared has augment, which nobody calls.*Augmented"
    ):
        build_dataset({"name": "scenes"})


@pytest.mark.parametrize("kind", ABILITIES)
def test_every_plugin_of_ours_declares_what_it_can_do(kind):
    for name in registry.builtin_names(kind):
        loaded = registry.load(kind, name)
        if isinstance(loaded, type):
            others = [a for a in ABILITIES[kind] if not issubclass(loaded, a)]
            named = [a for a in others if a.__abstractmethods__]
            assert [a for a in named if a.__abstractmethods__ <= set(dir(loaded))] == []
