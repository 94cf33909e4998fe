"""A model folder opens in diffusers, which makes the same pictures of it."""

import shutil
from pathlib import Path

import pytest
import torch
from model_toys import STEPS, contents, random_model

from tinydiffusion.config import SamplingConfig
from tinydiffusion.pipeline import TextToImage

# Samplers of diffusers and numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPTS = [
    "a red circle", "a blue square on a white background", "", "two green triangles", "circle",
    "a red square left of a blue circle", "noise", "a yellow star above a red star",
]  # fmt: skip


@pytest.fixture(scope="module")
def model() -> TextToImage:
    return random_model()


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("model")
    model.save_pretrained(path)
    return path


def sampling(**changes) -> SamplingConfig:
    return SamplingConfig(**{"steps": STEPS, **changes})


@pytest.fixture(scope="module")
def open_folder(tmp_path_factory):
    """DiffusionPipeline.from_pretrained; the copies of code that it makes go to a fresh folder."""
    from diffusers import DiffusionPipeline
    from diffusers.utils import dynamic_modules_utils

    def open_folder(folder, **options):
        return DiffusionPipeline.from_pretrained(folder, trust_remote_code=True, **options)

    with pytest.MonkeyPatch.context() as patch:
        cache = str(tmp_path_factory.mktemp("code"))
        patch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", cache)
        yield open_folder


@pytest.fixture(scope="module")
def pipeline(open_folder, folder):
    return open_folder(folder)


@pytest.mark.parametrize("custom_pipeline", [None, "pipeline", "{folder}", "{folder}/pipeline.py"])
def test_diffusers_opens_the_folder_and_makes_the_same_pictures(
    open_folder, folder, custom_pipeline
):
    from diffusers import DiffusionPipeline

    options = {}
    if custom_pipeline is not None:
        options["custom_pipeline"] = custom_pipeline.format(folder=folder)
    pipeline = open_folder(folder, **options)
    assert isinstance(pipeline, DiffusionPipeline)
    expected = TextToImage.from_pretrained(folder).generate(PROMPTS[:2], seed=3)
    for image, same in zip(pipeline(PROMPTS[:2], seed=3).images, expected, strict=True):
        assert image.mode == "RGB"
        assert image.tobytes() == same.permute(1, 2, 0).numpy().tobytes()


def test_output_types_hold_the_same_pictures(pipeline, folder):
    expected = TextToImage.from_pretrained(folder).generate(["a red circle"]).float() / 255
    torch.testing.assert_close(pipeline("a red circle", output_type="pt").images, expected)
    (array,) = pipeline("a red circle", output_type="np", return_dict=False)
    torch.testing.assert_close(torch.from_numpy(array), expected.permute(0, 2, 3, 1))


def test_options_reach_the_model(pipeline, folder):
    pictures = pipeline(
        ["a red circle", "two blue squares"],
        negative_prompt="noise",
        num_images_per_prompt=2,
        num_inference_steps=3,
        guidance_scale=3.0,
        seed=9,
        output_type="pt",
    ).images
    expected = TextToImage.from_pretrained(folder).generate(
        ["a red circle", "a red circle", "two blue squares", "two blue squares"],
        seed=9,
        negative_prompt="noise",
        sampling=sampling(steps=3, guidance_scale=3.0),
    )
    torch.testing.assert_close(pictures, expected.float() / 255)


def test_a_generator_gives_the_next_pictures(pipeline):
    """As in diffusers: two pictures of one call are those of two calls, and none comes twice."""

    def pictures(count, generator):
        return pipeline(["a red circle"] * count, output_type="pt", generator=generator).images

    def generator(seed=4):
        return torch.Generator().manual_seed(seed)

    one, other = generator(), generator()
    together = pictures(2, one)
    assert torch.equal(together, torch.cat([pictures(1, other), pictures(1, other)]))
    assert not torch.equal(together[0], together[1])
    assert not torch.equal(together, pictures(2, one))
    apart = pictures(2, [generator(8), generator(4)])
    assert torch.equal(apart, torch.cat([pictures(1, generator(8)), pictures(1, generator(4))]))
    assert torch.equal(apart[1:], together[:1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "latent"}, "output_type"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt must be at least 1, got 0"),
        ({"generator": [torch.Generator()] * 3}, "2 pictures need as many"),
        ({"num_inference_steps": 0}, "num_inference_steps"),
    ],
)
def test_wrong_options_of_the_call_are_errors(pipeline, options, message):
    with pytest.raises(ValueError, match=message):
        pipeline(PROMPTS[:2], **options)


def test_weights_in_half_precision_are_refused(open_folder, folder):
    with pytest.raises(ValueError, match=r"must be torch.float32, got torch.float16"):
        open_folder(folder, dtype=torch.float16)("a red circle")


def test_diffusers_saves_what_it_loaded(pipeline, folder, tmp_path):
    pipeline.save_pretrained(tmp_path)
    assert contents(tmp_path) == contents(folder)


def test_our_own_class_opens_the_folder_without_running_anything_of_it(folder, tmp_path, pipeline):
    from tinydiffusion.diffusers_pipeline import TextToImagePipeline

    copy = shutil.copytree(folder, tmp_path / "copy")
    for file in copy.rglob("pipeline.py"):
        file.write_text("raise AssertionError('code of the folder was run')")
    opened = TextToImagePipeline.from_pretrained(copy)
    images = [p("a red circle", seed=2, output_type="pt").images for p in (opened, pipeline)]
    assert torch.equal(*images)
    opened.save_pretrained(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
