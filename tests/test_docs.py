"""Every code block of README and docs/ does what it says, page by page in a fresh folder."""

import importlib
import re
import shlex
import subprocess
import sys
import tomllib
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch.distributed.run import get_args_parser

from tinydiffusion import protocols, registry
from tinydiffusion.cli import main
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.diffusion import prediction, schedule, weighting
from tinydiffusion.diffusion.denoiser import Denoiser
from tinydiffusion.diffusion.noise import picture_generators, randn
from tinydiffusion.pictures.caption_files import SIDECARS
from tinydiffusion.pictures.metadata import METADATA_NAMES
from tinydiffusion.run import sanity
from tinydiffusion.run.identity import MAY_CHANGE
from tinydiffusion.run.train import EXIT_CODES
from tinydiffusion.runtime.errors import USER_MISTAKE, RunError
from tinydiffusion.sampling.folder import save_samples
from tinydiffusion.survey import survey

# Samplers of diffusers and numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

ROOT = Path(__file__).parents[1]
DOCS = sorted(p for p in (ROOT / "docs").glob("*.md") if p.stem != "results")
PAGES = {page.stem: page for page in [ROOT / "README.md", *DOCS]}
SHORTER = {
    "train": [
        "--training.num_pictures=32", "--training.batch_size=16", "--sampling.steps=2",
        "--sampling.num_prompts=2", "--evaluation.num_images=4",
    ],
    "evaluate": ["--num-images=4"],
}  # fmt: skip
SMALLER = [
    "--network.channels=[32]", "--network.attention_levels=[]", "--network.layers_per_block=1",
    "--text_encoder.width=32", "--text_encoder.layers=1", "--text_encoder.heads=2",
]  # fmt: skip
"""What keeps the pages' runs to seconds; `SMALLER` where text encoder and network are ours."""


class Block(NamedTuple):
    """A fenced code block."""

    kind: str  # "python", "text tree" ...
    text: str

    @property
    def file(self) -> str | None:
        """The name in its first line, such as `# my_sampler.py`."""
        match = re.match(r"# (\w+\.\w+)\n", self.text)
        return match[1] if match else None


def page_text(page: str) -> str:
    return PAGES[page].read_text()


def blocks(page: str) -> list[Block]:
    found = re.findall(r"^```(.+?)\n(.*?)^```$", page_text(page), re.DOTALL | re.MULTILINE)
    return [Block(*block) for block in found]


def write_files(page: str, folder: Path) -> None:
    for block in blocks(page):
        if block.file:
            (folder / block.file).write_text(block.text)


# ---- pages from top to bottom ----------------------------------------------------------------


@pytest.fixture
def newcomer(tmp_path, monkeypatch):
    """A fresh clone, and captioned pictures in my/."""
    scenes = ScenesDataset(size=64, num_scenes=32)
    examples = [scenes[i] for i in range(len(scenes))]
    for folder, part in (("my/pictures", examples[:24]), ("my/held-out", examples[24:])):
        captions = [{"text": example["caption"]} for example in part]
        images = enumerate(example["image"] for example in part)
        save_samples(tmp_path / folder, images, dict(enumerate(captions)))
    for part in ROOT.iterdir():  # runs/ and what else git ignores must not be found
        if subprocess.run(["git", "check-ignore", "-q", part], cwd=ROOT).returncode:
            (tmp_path / part.name).symlink_to(part)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sanity, "FIRST", 32)
    monkeypatch.setattr(sanity, "EACH_MORE", 0)
    monkeypatch.setattr("tinydiffusion.survey.SURVEYED", 200)
    return tmp_path


@pytest.fixture
def code_cache(tmp_path, monkeypatch):
    """Where diffusers copies a model folder's code to."""
    from diffusers.utils import dynamic_modules_utils

    monkeypatch.setattr(dynamic_modules_utils, "HF_MODULES_CACHE", str(tmp_path / "code"))


def run_command(words: list[str]) -> None:
    if words[0] in ("pip", "./check") or words[:3] == ["python", "-m", "pytest"]:
        return  # what .ci/run does, and what takes long
    if words[0] == "torchrun":  # in one process: what several do is tested with the commands
        get_args_parser().parse_args(words[1:])
        words = ["python", *words[[word.endswith(".py") for word in words].index(True) :]]
    if words[0] == "python":
        door = words[1]
        assert (ROOT / door).is_file(), words
        words = ["tinydiffusion", door.removesuffix(".py"), *words[2:]]
    program, command, *arguments = words
    assert program == "tinydiffusion", f"no test knows how to run {words}"
    smaller = SMALLER if command in ("train", "sanity") and "plugins.yaml" not in words else []
    if command == "train" and any("distill" in word for word in words):
        smaller = [*smaller, "--objective.num_inference_steps=2", "--objective.teacher_steps=2"]
    allowed = (0, 1) if command == "sanity" else (0,)  # it has learned nothing here
    assert main.main([command, *arguments, *SHORTER.get(command, []), *smaller]) in allowed, words


def run_block(block: Block, folder: Path) -> None:
    if block.kind == "bash":
        for line in block.text.splitlines():
            words = shlex.split(line, comments=True)
            for follows, command in groupby(words, key="&&".__ne__):
                if follows:
                    run_command(list(command))
    elif block.kind == "python" and not block.file:
        exec(compile(block.text, "docs", "exec"), {})
    elif block.kind == "text tree":
        for line in block.text.splitlines():
            assert list(folder.glob(line.split()[0].rstrip("/"))), line
    else:
        assert block.file or block.kind in ("text", "toml"), block


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_the_page_runs(page, newcomer, code_cache):
    write_files(page, newcomer)
    for block in blocks(page):
        run_block(block, newcomer)


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_blocks_only(page):
    prose = re.sub(r"^```.*?^```$", "", page_text(page), flags=re.DOTALL | re.MULTILINE)
    inline = re.findall(r"`((?:python|tinydiffusion|pip) [^`]+ --?[a-z][^`]+)`", prose)
    assert [command for command in inline if not command.endswith(" --help")] == []


def test_python_blocks_are_formatted_and_linted(tmp_path):
    for page in PAGES:
        for number, block in enumerate(b for b in blocks(page) if b.kind == "python"):
            (tmp_path / f"{page.replace('-', '_')}_{number}.py").write_text(block.text)
    ruff = [sys.executable, "-m", "ruff"]
    config = ["--config", str(ROOT / "pyproject.toml"), "--no-cache", str(tmp_path)]
    examples_may = ["--ignore", "ANN,ARG,D,T20"]
    subprocess.run([*ruff, "check", *examples_may, *config], check=True)
    subprocess.run([*ruff, "format", "--check", *config], check=True)


# ---- what pages say in words -----------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_and_named_files_exist(page):
    text = page_text(page)
    for link in re.findall(r"\]\((?!https?:)([^)#]+)", text):
        assert (PAGES[page].parent / link).exists(), link
    for file in re.findall(r"`([\w/]+/[\w.]*)`", text):
        if file.startswith(("my/", "runs/", "tensorboard/")):
            continue
        assert (ROOT / file).exists() or (ROOT / "tinydiffusion" / file).exists(), file


def test_notation_names_every_choice():
    text = page_text("notation")
    names = [*schedule.SCHEDULES, *schedule.SPACINGS, *prediction.PREDICTION_TYPES]
    names += [*weighting.WEIGHTINGS, *weighting.DENSITIES]
    assert [name for name in names if f"`{name}`" not in text] == []


@pytest.mark.parametrize("name", schedule.SCHEDULES)
def test_notation_gives_the_ends_of_every_schedule(name):
    row = next(r for r in page_text("notation").splitlines() if r.startswith(f"| `{name}` | "))
    path, first, last = (cell.strip() for cell in row.strip("|").split("|")[2:])
    ours = schedule.make_schedule(name)
    assert ours.path.replace("_", " ") == path
    assert ours.sigmas[0].item() == pytest.approx(float(first), rel=5e-3)
    assert ours.sigmas[-1].item() == pytest.approx(float(last), rel=5e-3)


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("your-own-pictures", [*METADATA_NAMES, *SIDECARS]),
        ("model-folder", [f"`{name}`" for name in MAY_CHANGE]),
        ("plugins", [f"`tinydiffusion.{folder}`" for folder in registry.KINDS.values()]),
    ],
)
def test_lists_are_complete(page, words):
    assert [word for word in words if word not in page_text(page)] == []


def test_exit_codes_are_those_of_the_code():
    table = page_text("model-folder").partition("## Exit codes")[2]
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", table, re.MULTILINE)}
    ends = {error.exit_code for error in RunError.__subclasses__()}
    assert listed == {1, USER_MISTAKE, *ends, *EXIT_CODES.values()}
    assert main.main(["train", "--config", "nowhere.yaml"]) == USER_MISTAKE


# ---- the examples of plugins.md keep their contracts -----------------------------------------


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The plug-in of a kind, loaded by `module:attribute`."""
    write_files("plugins", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    names = re.findall(r"\b(my_(\w+):\w+)", (tmp_path / "plugins.yaml").read_text())
    by_kind = {kind: name for name, kind in names}
    assert set(by_kind) == set(registry.KINDS)
    return lambda kind: registry.load(kind, by_kind[kind])


def gaussian_error(sampler, steps: int, **options) -> float:
    """Of pictures from data of standard deviation 0.5, where the exact denoiser is known."""
    sigmas = torch.linspace(5, 0, steps + 1, dtype=torch.float64)
    x = 5 * randn((2, 3, 4, 4), picture_generators(0, 0, 2), dtype=torch.float64)
    pictures = sampler(
        lambda x, sigma: x * 0.25 / (0.25 + sigma**2), x, sigmas, generators=[], **options
    )
    exact = x * (0.25 / (0.25 + 25)) ** 0.5
    return (pictures - exact).abs().max().item()


@pytest.mark.parametrize("share", [0.5, 0.7])
def test_half_the_step_of_the_sampler_is_a_quarter_of_the_error(example, share):
    errors = [gaussian_error(example("sampler"), n, share=share) for n in (100, 200)]
    assert errors[0] > 3.8 * errors[1]


def test_the_data_set(example):
    dataset = example("dataset")(num_pictures=12)
    assert isinstance(dataset, protocols.Dataset)
    image = dataset[3]["image"]
    assert image.dtype == torch.uint8
    assert image.shape == (3, 32, 32)
    assert len(set(survey(dataset)[0])) == 6
    for index in range(len(dataset)):
        lying = dataset[index]["image"][0, :, 0].float().std() > 0
        assert dataset[index]["caption"].startswith("lying" if lying else "upright")


def test_the_text_encoder(example):
    encoder = example("text_encoder").from_captions([], width=8, max_length=12)
    assert isinstance(encoder, protocols.TextEncoder)
    captions = ["", "red", "a red cube on a table"]
    assert encoder.tokenize(captions).num_truncated == 1
    together = encoder.encode(captions)
    assert together.encoder_hidden_states.shape == (3, 12, 8)
    rebuilt = type(encoder)(**encoder.config())
    rebuilt.load_state_dict(encoder.state_dict())
    for i, caption in enumerate(captions):
        for part, alone in zip(together[:3], rebuilt.encode([caption])[:3], strict=True):
            torch.testing.assert_close(part[i], alone[0])


def test_network_and_objective(example):
    encoder = example("text_encoder").from_captions([], width=8)
    network = example("network")(text_dim=8, pooled_dim=8, in_channels=3, width=16)
    denoiser = Denoiser(network, schedule.make_schedule("flow"), prediction_type="flow")
    objective = example("objective")(denoiser=denoiser, text_encoder=encoder, delta=0.1)
    assert isinstance(objective, protocols.Objective)
    image = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8)
    captions = ["a", "b", "c", ""]
    batch = protocols.Batch(image=image, caption=captions, id=captions, position=[0, 1, 2, 3])
    losses = [objective.loss(batch, picture_generators(0, 0, 4))[0] for _ in range(2)]
    assert torch.equal(*losses)
    losses[0].backward()
    for module in (network, encoder):
        assert all(p.grad.any() for p in module.parameters())


def test_the_evaluator_merges(example):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8, generator=generator)

    def measured(part: slice):
        evaluator = example("evaluator")()
        for source in ("generated", "reference"):
            ids = torch.arange(6)[part]
            evaluator.update(
                {"source": source, "id": ids, "image": images[part], "prompt": [""] * len(ids)}
            )
        return evaluator

    merged = example("evaluator")()
    assert isinstance(merged, protocols.Evaluator)
    parts = [measured(part).state()["sums"][0] for part in (slice(0, 2), slice(2, 6))]
    merged.load_state({"sums": (sum(parts), "sum")})
    (score,) = merged.compute()
    assert score.n == 6
    assert score.value == pytest.approx((images / 255).mean().item())
    (whole,) = measured(slice(None)).compute()
    assert score == whole._replace(value=pytest.approx(whole.value))


def test_entry_points_give_the_names_that_the_page_says(newcomer, capsys):
    write_files("plugins", newcomer)
    (toml,) = (tomllib.loads(b.text) for b in blocks("plugins") if b.kind == "toml")
    groups = toml["project"]["entry-points"]
    info = newcomer / "my_plugins-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-plugins\nVersion: 1.0\n")
    lines = [
        line
        for group, points in groups.items()
        for line in (f"[{group}]", *(f"{name} = {value}" for name, value in points.items()))
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))
    importlib.invalidate_caches()
    assert registry.load("sampler", "midpoint").__name__ == "sample_midpoint"
    assert registry.create("evaluator", "brightness").needs == ("generated",)
    assert main.main(["plugins", "sampler"]) == 0
    assert re.search(r"midpoint +my_sampler:sample_midpoint", capsys.readouterr().out)
