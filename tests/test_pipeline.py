"""A picture depends on its prompt and seed alone, before and after a trip to disk or diffusers."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from model_toys import STEPS, random_model

import tinydiffusion
from tinydiffusion import registry
from tinydiffusion.config import SamplingConfig
from tinydiffusion.layers.kernels.int8 import int8_obstacle
from tinydiffusion.pipeline import MAX_PROMPT, TextToImage
from tinydiffusion.runtime.errors import NonFiniteError

# Samplers of diffusers and numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

PROMPTS = [
    "a red circle", "a blue square on a white background", "", "two green triangles", "circle",
    "a red square left of a blue circle", "noise", "a yellow star above a red star",
]  # fmt: skip
SAMPLER_OPTIONS = {
    "ddim": {"eta": 1.0},
    "diffusers": {
        "scheduler": "DPMSolverMultistepScheduler",
        "scheduler_options": {"algorithm_type": "sde-dpmsolver++"},
    },
}


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


# ---- pictures --------------------------------------------------------------------------------


def test_pictures_are_neither_flat_nor_clamped_away(model):
    images = model.generate(PROMPTS)
    assert images.shape == (len(PROMPTS), 3, 32, 32)
    assert ((images > 0) & (images < 255)).float().mean() > 0.3  # else equality says little
    assert images.float().std() > 10


@pytest.mark.parametrize("sampler", registry.names("sampler"))
def test_pictures_do_not_depend_on_the_batch_size(model, sampler):
    images = [
        model.generate(
            PROMPTS,
            seed=7,
            batch_size=batch_size,
            sampling=sampling(sampler=sampler),
            sampler_options=SAMPLER_OPTIONS.get(sampler),
        )
        for batch_size in (1, 3, 8)
    ]
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_pictures_of_large_batches_are_those_of_small_ones(model, precision):
    """Of 40 pictures and as many without a prompt: calls of 64 rows, where they are the same."""
    parts = model.network, model.text_encoder, model.config, model.image_shape
    few, many = (TextToImage(*parts, precision=precision) for _ in range(2))
    options = {"sampling": sampling(sampler="ddpm", steps=3)}
    images = many.generate(5 * PROMPTS, batch_size=40, **options)
    assert [*many.denoiser.network.same] == [torch.Size((3, 32, 32))]
    assert torch.equal(few.generate(5 * PROMPTS, batch_size=8, **options), images)
    assert not few.denoiser.network.same


def test_pictures_do_not_depend_on_the_batch_size_in_bfloat16(model):
    half = TextToImage(
        model.network, model.text_encoder, model.config, model.image_shape, precision="bfloat16"
    )
    options = {"sampling": sampling(sampler="ddpm", steps=2)}
    images = half.generate(PROMPTS[:3], **options)
    assert torch.equal(half.generate(PROMPTS[:3], batch_size=1, **options), images)
    assert not torch.equal(model.generate(PROMPTS[:3], **options), images)


@pytest.mark.skipif(
    int8_obstacle(torch.device("cpu")) is not None, reason="no int8 convolutions on this CPU"
)
def test_pictures_in_int8_are_about_the_same_and_do_not_depend_on_the_batch_size():
    wide = random_model([96, 32])
    exact, half, mine = (
        TextToImage(wide.network, wide.text_encoder, wide.config, wide.image_shape, precision=each)
        for each in ("float32", "bfloat16", "int8")
    )
    assert [model.precision for model in (exact, half, mine)] == ["float32", "bfloat16", "int8"]
    options = {"sampling": sampling(sampler="ddpm", steps=2)}
    true, rounded, images = (m.generate(PROMPTS[:3], **options) for m in (exact, half, mine))
    assert torch.equal(mine.generate(PROMPTS[:3], batch_size=1, **options), images)
    assert not torch.equal(images, rounded)
    assert (images.float() - true.float()).abs().mean() < 4  # of 255
    assert torch.equal(exact.generate(PROMPTS[:3], **options), true)  # nothing is left behind


def test_int8_is_refused_before_the_folder_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ValueError, match=r"got int8: this CPU has no AVX512-VNNI"):
        TextToImage.from_pretrained(tmp_path, precision="int8")


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_pictures_of_a_guidance_interval_do_not_depend_on_the_batch_size(model, sampler):
    """Calls of the network without the unconditional half are of the same shape too."""
    options = {"sampling": sampling(sampler=sampler, guidance_interval=(0.5, 5.0))}
    images, *others = (
        model.generate(PROMPTS, seed=7, batch_size=size, **options) for size in (8, 1, 3, 5)
    )
    assert all(torch.equal(images, other) for other in others)
    for changes in ({}, {"guidance_scale": 1.0}):
        plain = model.generate(PROMPTS, seed=7, sampling=sampling(sampler=sampler, **changes))
        assert not torch.equal(images, plain)


def test_an_interval_saves_the_unconditional_half_outside(model, monkeypatch):
    """Euler's 4 steps of the flow begin at sigma 4095, 3, 1 and 1/3."""
    monkeypatch.setattr(model.denoiser.network, "rows", 8)
    monkeypatch.setattr(model.denoiser.network, "same", {torch.Size((3, 32, 32)): False})

    def pictures_and_calls(**changes):
        shapes = []
        hook = model.network.register_forward_pre_hook(lambda _, x: shapes.append(len(x[0])))
        with hook:
            return model.generate(PROMPTS, sampling=sampling(**changes)), shapes

    images, everywhere = pictures_and_calls()
    unguided, nowhere = pictures_and_calls(guidance_scale=1.0)
    assert (everywhere, nowhere) == ([8] * 8, [8] * 4)
    for interval, expected, calls in [
        ((0.0, 10_000.0), images, 8), ((5.0, 100.0), unguided, 4), ((0.5, 3.5), None, 6),
    ]:  # fmt: skip
        same, shapes = pictures_and_calls(guidance_interval=interval)
        assert shapes == [8] * calls
        assert expected is None or torch.equal(same, expected)


def test_picture_i_has_seed_plus_i(model):
    options = {"sampling": sampling(sampler="ddpm")}
    images = model.generate(["a red circle"] * 3, seed=5, **options)
    for i in range(3):
        assert torch.equal(images[i], model.generate(["a red circle"], seed=5 + i, **options)[0])
    assert not torch.equal(images[0], images[1])


def test_callers_conventions(model):
    """One string, None, numbers of numpy and torch, tuples and lists stand for what they say."""
    expected = model.generate(["a red circle"], seed=3)
    for seed in (np.int64(3), np.uint8(3), np.array(3), torch.tensor(3)):
        assert torch.equal(model.generate("a red circle", seed=seed), expected)
    for negative_prompt in (None, "", [""], ("",)):
        same = model.generate(("a red circle",), seed=3, negative_prompt=negative_prompt)
        assert torch.equal(same, expected)


def test_every_prompt_may_have_a_negative_prompt_of_its_own(model):
    negative = ["", "two blue squares", "", "noise"]
    images = model.generate(PROMPTS[:4], negative_prompt=negative, batch_size=3)
    for i, text in enumerate(negative):
        alone = model.generate([PROMPTS[i]], seed=i, negative_prompt=text)
        assert torch.equal(images[i : i + 1], alone)


def test_a_refused_call_draws_nothing_from_the_generator(model):
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    with pytest.raises(ValueError, match="num_inference_steps"):
        model.generate("a red circle", generator=generator, sampling=sampling(steps=0))
    assert torch.equal(generator.get_state(), before)


def test_batches_come_as_they_are_done(model):
    sizes = [len(batch) for batch in model.generate_batches(PROMPTS[:5], batch_size=2)]
    assert sizes == [2, 2, 1]


def test_prompt_negative_prompt_and_guidance_matter(model):
    def picture(prompt="a red circle", guidance_scale=2.0, negative_prompt=""):
        options = {"sampling": sampling(guidance_scale=guidance_scale)}
        return model.generate([prompt], negative_prompt=negative_prompt, **options)

    assert not torch.equal(picture(), picture("two blue squares"))
    assert not torch.equal(picture(), picture(guidance_scale=1.0))
    assert not torch.equal(picture(), picture(negative_prompt="two blue squares"))
    unguided = picture(guidance_scale=1.0)
    assert torch.equal(unguided, picture(guidance_scale=1.0, negative_prompt="two blue squares"))


def test_the_models_sampling_section_is_the_default(model):
    by_default = model.generate(PROMPTS[:1])
    assert torch.equal(by_default, model.generate(PROMPTS[:1], sampling=model.config.sampling))
    assert not torch.equal(by_default, model.generate(PROMPTS[:1], sampling=sampling(steps=3)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "list of at least one"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**64}, "seed"),
        ({"seed": 2**64 - 1}, "seed"),  # the second picture's is too large
        ({"prompts": ["a\ud800"]}, "is not text: surrogates not allowed"),
        ({"negative_prompt": "\udcff"}, "is not text"),
        ({"prompts": ["x" * 10_000_000]}, "at most 10000 characters, got 10000000; it begins"),
        ({"sampling": sampling(steps=0)}, "num_inference_steps"),
        ({"sampling": sampling(steps=1001)}, "num_inference_steps"),
        ({"sampling": sampling(steps=10**9)}, "num_inference_steps"),
        ({"sampling": sampling(guidance_scale=float("nan"))}, r"in \[0, 1000\], got nan"),
        ({"sampling": sampling(guidance_scale=float("inf"))}, r"in \[0, 1000\], got inf"),
        ({"sampling": sampling(guidance_scale=-1.0)}, r"guidance_scale .* got -1.0"),
        ({"sampling": sampling(guidance_rescale=float("nan"))}, "guidance_rescale .* got nan"),
        ({"sampling": sampling(spacing="traling")}, "did you mean 'trailing'"),
        ({"sampling": sampling(sampler="eulr")}, "did you mean 'euler'"),
        ({"sampling": sampling(guidance_rescale=1.5)}, "guidance_rescale"),
        ({"sampling": sampling(guidance_interval=(3.0, 0.3))}, "got 3 and 0.3; 0 and 10000"),
        ({"sampler_options": {"eta": 1.0}}, "no option 'eta'"),
        ({"sampler_options": {"generators": []}}, "set by the pipeline"),
        ({"sampling": sampling(sampler="ddim"), "sampler_options": {"eta": 2.0}}, "eta"),
        ({"sampling": sampling(sampler="diffusers")}, "needs the option 'scheduler'"),
    ],
)
def test_wrong_options_are_errors_before_the_network_runs(model, options, message):
    def forbidden(*_):
        raise AssertionError("the network was called")

    hook = model.network.register_forward_pre_hook(forbidden)
    with hook, pytest.raises(ValueError, match=message):
        model.generate(**{"prompts": PROMPTS[:2], **options})


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"seed": -1},
        {"prompts": ["\ud800"]},
        {"sampling": sampling(steps=0)},
        {"sampling": sampling(guidance_scale=-1.0)},
    ],
)
def test_wrong_options_are_errors_before_the_first_batch_is_asked_for(model, options):
    with pytest.raises(ValueError, match=r"."):
        model.generate_batches(**{"prompts": PROMPTS[:2], **options})


@pytest.mark.parametrize(
    "prompt",
    [
        "", "   ", "\n\t", "🙂👩‍👩‍👧‍👦🏳️‍🌈", "دائرة حمراء \u202e", "<start_of_text> <end_of_text>",
        "<|endoftext|>", "</w>", "*?[a-z]%s{}$HOME", "a\0b", "\ufffe\U0010ffff", "e\u0301" * 100,
        "x" * MAX_PROMPT,
    ],
)  # fmt: skip
def test_any_text_is_a_prompt(model, prompt):
    images = model.generate(["a red circle", prompt], sampling=sampling(steps=1))
    assert torch.equal(images[:1], model.generate(["a red circle"], sampling=sampling(steps=1)))


def test_a_picture_that_is_no_number_ends_the_call(model):
    def spoil(module, inputs, output):
        output[1] = float("nan")

    hook = model.network.register_forward_hook(spoil)
    with hook, pytest.raises(NonFiniteError, match="the picture of seed 6 came out as NaN"):
        model.generate(PROMPTS[:3], seed=5, sampling=sampling(guidance_scale=1.0))


def test_prompts_that_are_too_long_are_counted(model):
    assert model.num_truncated(["a red circle", "red " * 100]) == 1


# ---- diffusers -------------------------------------------------------------------------------


def test_drawing_imports_no_diffusers_no_compiler_and_no_sharding(folder):
    """Each of which would take up to a second of the time until the first picture."""
    program = (
        "import sys\n"
        "import tinydiffusion.sampling.sample\n"
        "from tinydiffusion.pipeline import TextToImage\n"
        "TextToImage.from_pretrained(sys.argv[1], device='cpu').generate(['a red circle'])\n"
        "heavy = {'diffusers', 'torch._dynamo', 'torch.distributed.fsdp'} & set(sys.modules)\n"
        "sys.exit(f'{heavy}' if heavy else 0)"
    )
    root = Path(tinydiffusion.__file__).parents[1]
    subprocess.run([sys.executable, "-c", program, str(folder)], cwd=root, check=True)


def test_every_picture_may_have_a_seed_of_its_own(model):
    prompts = ["a red circle", "two blue squares", "a red circle"]
    listed = model.generate(prompts, seed=[7, 3, 8])
    alone = [model.generate(p, seed=s) for p, s in zip(prompts, [7, 3, 8], strict=True)]
    assert torch.equal(listed, torch.cat(alone))
