"""A run so small that it takes a second, and its model."""

from pathlib import Path

import pytest
import torch
import yaml

from tinydiffusion.build import build_objective
from tinydiffusion.cli.main import main
from tinydiffusion.config import Config, SamplingConfig
from tinydiffusion.pipeline import TextToImage

TINY = """
dataset: {name: scenes, size: 16, num_scenes: 32}
validation: {split: held_out, num_scenes: 8}
text_encoder: {name: clip, width: 32, layers: 1, heads: 2}
network: {name: unet, channels: [32, 32], layers_per_block: 1}
training:
  {num_pictures: 64, batch_size: 8, warmup_pictures: 8, checkpoint_every: 32, log_every: 16,
   precision: float32, device: cpu}
sampling: {steps: 2, every: 32, num_prompts: 4}
evaluation: {metrics: [pixel_fd], num_images: 8}
"""


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> str:
    """The config file."""
    file = tmp_path_factory.mktemp("config") / "tiny.yaml"
    file.write_text(TINY)
    return str(file)


@pytest.fixture(scope="session")
def finished(tiny, tmp_path_factory) -> Path:
    """The folder of a run that has ended; tests leave it as it is."""
    run_dir = tmp_path_factory.mktemp("runs") / "tiny"
    assert main(["train", "--config", tiny, "--run-dir", str(run_dir)]) == 0
    return run_dir


@pytest.fixture(scope="session")
def model(finished) -> str:
    return str(finished / "model")


@pytest.fixture(scope="session")
def untrained(tmp_path_factory) -> str:
    """A model folder that makes hundreds of pictures a second; prompt and seed matter."""
    config = Config(
        dataset={"name": "scenes", "num_scenes": 8},
        validation={"split": "held_out"},
        text_encoder={"name": "clip", "width": 16, "layers": 1, "heads": 2},
        network={"name": "unet", "channels": [8], "head_dim": 8, "attention_levels": []},
        sampling=SamplingConfig(steps=1),
    )
    objective = build_objective(config, ["a red circle and blue squares"] * 2).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in objective.parameters():
        parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path_factory.mktemp("models") / "untrained"
    network, text_encoder = objective.denoiser.network, objective.text_encoder
    TextToImage(network, text_encoder, config, (3, 8, 8)).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def folder_config(tiny, tmp_path):
    """The tiny run with a folder for data set."""

    def write(path) -> str:
        settings = yaml.safe_load(Path(tiny).read_text())
        settings["dataset"] = {"name": "folder", "path": str(path), "size": 16}
        file = tmp_path / "folder.yaml"
        file.write_text(yaml.safe_dump({**settings, "validation": None}))
        return str(file)

    return write


@pytest.fixture
def mistake(capsys):
    """Runs a command line that must end in one line on standard error and exit code 2."""

    def mistake(*arguments: str) -> str:
        capsys.readouterr()
        assert main(list(arguments)) == 2
        captured = capsys.readouterr()
        assert captured.out == ""
        (line,) = captured.err.splitlines()
        assert line.startswith("error: ")
        return line.removeprefix("error: ")

    return mistake


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


@pytest.fixture
def unchanged():
    """A folder's bytes, to be compared."""
    return contents
