"""Proves that a model folder from a stranger runs no code and leads to no other file."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from model_toys import assert_found, contents, edit_json, random_model, read_weights, refusal, seal

import tinydiffusion
from tinydiffusion.cli.main import main
from tinydiffusion.model_folder.layout import INDEX, WEIGHTS
from tinydiffusion.model_folder.opening import ModelFolderError
from tinydiffusion.pipeline import TextToImage

ROOT = Path(tinydiffusion.__file__).parents[1]
NETWORK, ENCODER = f"network/{WEIGHTS}", f"text_encoder/{WEIGHTS}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("attacks") / "model"
    random_model().save_pretrained(path)
    return path


@pytest.fixture
def copy(folder, tmp_path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


# ---- code ------------------------------------------------------------------------------------


class Canary:
    """Unpickled, it leaves a file."""

    def __init__(self, victim: Path) -> None:
        self.victim = victim

    def __reduce__(self):
        return os.system, (f"touch {self.victim}",)


@pytest.fixture
def victim(tmp_path):
    yield tmp_path / "victim"
    assert not (tmp_path / "victim").exists()


def test_pickles_beside_the_weights_are_not_looked_at(copy, victim):
    for name in ("pytorch_model.bin", "diffusion_pytorch_model.bin", "model.pt", "model.ckpt"):
        for place in (copy, copy / "network", copy / "text_encoder"):
            torch.save(Canary(victim), place / name)
    assert TextToImage.from_pretrained(copy).generate(["a"]).shape == (1, 3, 32, 32)


@pytest.mark.parametrize("name", [NETWORK, ENCODER])
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_in_place_of_the_weights_is_refused(copy, victim, name, zipped):
    weights = {**read_weights(copy / name), "canary": Canary(victim)}
    torch.save(weights, copy / name, _use_new_zipfile_serialization=zipped)
    seal(copy)
    assert name in refusal(copy)
    (copy / name).unlink()
    torch.save(weights, (copy / name).with_suffix(".bin"))
    assert "is missing" in refusal(copy)


@pytest.fixture
def evil(copy, victim, monkeypatch):
    """A module in the folder that leaves a file when it is imported; Python looks there first."""
    code = f"open({str(victim)!r}, 'w').close()\nclass Net: pass\ndef sample(): pass\n"
    (copy / "evil.py").write_text(code)
    monkeypatch.chdir(copy)
    monkeypatch.syspath_prepend(copy)
    monkeypatch.syspath_prepend("")
    return copy


SECTIONS = {
    "dataset": {"name": "evil:Net"},
    "validation": {"name": "evil:Net"},
    "text_encoder": {"name": "evil:Net"},
    "network": {"name": "evil:Net"},
    "objective": {"name": "evil:Net"},
    "sampling": {"sampler": "evil:sample"},
    "evaluation": {"metrics": ["pixel_fd", "evil:Net"]},
}
NAMED = "'evil:.*' is code that is not installed; .* trust_plugins=True, .* --trust-plugins"


@pytest.mark.parametrize("section", SECTIONS)
def test_the_config_cannot_name_code(evil, section):
    edit_json(evil / INDEX, **{f"tinydiffusion_config.{section}": SECTIONS[section]})
    assert_found(NAMED, refusal(evil))


def test_options_of_an_evaluator_cannot_name_code(evil):
    edit_json(evil / INDEX, **{"tinydiffusion_config.evaluation.options": {"evil:Net": {}}})
    assert_found(NAMED, refusal(evil))


@pytest.mark.parametrize("component", ["network", "text_encoder"])
def test_a_component_cannot_name_code(evil, component):
    edit_json(evil / component / "config.json", name="evil:Net")
    seal(evil)
    assert_found(NAMED, refusal(evil))


@pytest.mark.parametrize(("command", "where"), [("sample", "component"), ("evaluate", "config")])
def test_no_command_imports_from_the_folder(evil, command, where):
    """... through a process of its own that was started in the folder."""
    if where == "config":
        edit_json(evil / INDEX, **{"tinydiffusion_config.sampling.sampler": "evil:sample"})
    else:
        edit_json(evil / "network/config.json", name="evil:Net")
        seal(evil)
    rest = ["a red circle"] if command == "sample" else ["--metrics", "pixel_fd"]
    ended = subprocess.run(
        [sys.executable, "-m", "tinydiffusion.cli.main", command, ".", *rest],
        cwd=evil, env={**os.environ, "PYTHONPATH": f".:{ROOT}"}, capture_output=True, text=True,
    )  # fmt: skip
    assert ended.returncode == 2
    (line,) = ended.stderr.splitlines()
    assert_found(f"error: .*{NAMED}", line)


@pytest.mark.parametrize("component", ["network", "text_encoder"])
def test_trusted_or_not_only_modules_are_called(copy, victim, component):
    evil = {"name": "subprocess:run", "args": ["touch", str(victim)]}
    (copy / component / "config.json").write_text(json.dumps(evil))
    seal(copy)
    with pytest.raises(ModelFolderError, match="is not a class of"):
        TextToImage.from_pretrained(copy, trust_plugins=True)


def test_trusted_code_is_imported(copy, tmp_path, monkeypatch):
    (tmp_path / "my_net.py").write_text("from tinydiffusion.networks.unet import UNet as Net\n")
    monkeypatch.syspath_prepend(tmp_path)
    edit_json(copy / "network/config.json", name="my_net:Net")
    seal(copy)
    assert_found("'my_net:Net' is code", refusal(copy))
    flags = ["sample", str(copy), "a", "--out", str(tmp_path / "out"), "--steps", "1"]
    assert main(flags) == 2
    assert main([*flags, "--trust-plugins"]) == 0
    assert (tmp_path / "out" / "00000.png").is_file()


# ---- paths -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [INDEX, "network/config.json", NETWORK])
@pytest.mark.parametrize("target", ["absolute", "relative", "device"])
def test_a_link_out_of_the_folder_is_refused(copy, tmp_path, name, target):
    secret = tmp_path / "secret"
    secret.write_bytes((copy / name).read_bytes())
    file = copy / name
    file.unlink()
    up = "../" * (1 + name.count("/"))
    to = {"absolute": secret, "relative": f"{up}secret", "device": "/dev/zero"}[target]
    file.symlink_to(to)
    missing = "missing" if target == "device" else "a link out of the model folder"
    assert_found(f"{name} is {missing}", refusal(copy))


def test_a_component_that_is_a_link_is_refused(copy, tmp_path):
    (copy / "network").rename(tmp_path / "elsewhere")
    (copy / "network").symlink_to(tmp_path / "elsewhere")
    assert "a link out of the model folder" in refusal(copy)


@pytest.mark.parametrize("kind", ["pipe", "folder", "loop", "dangling"])
def test_what_is_no_file_is_refused_and_not_waited_for(copy, kind):
    file = copy / "network" / "config.json"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    else:
        file.symlink_to(file.name if kind == "loop" else "nowhere")
    assert "network/config.json is missing" in refusal(copy)


@pytest.mark.parametrize("name", ["x" * 300, "x/" * 3000, "no\nwhere"])
def test_a_path_that_cannot_be_is_one_line(tmp_path, capsys, name):
    assert main(["sample", str(tmp_path / name), "a"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert INDEX in line or "there is no folder" in line


@pytest.mark.parametrize(
    ("component", "options"),
    [
        ("text_encoder", {"cache_dir": "/tmp"}),
        ("text_encoder", {"width": [{"bpe_path": "/etc/passwd"}]}),
        ("network", {"init": "/etc/passwd"}),
        ("network", {"init": "../secret"}),
        ("network", {"init": "~/secret"}),
        ("network", {"init": "C:\\secret"}),
        ("network", {"init": "s3://bucket/secret"}),
        ("text_encoder", {"model": {"name": "local-dir:secret"}}),
    ],
)
def test_options_of_a_component_name_no_paths(copy, component, options):
    edit_json(copy / component / "config.json", **options)
    seal(copy)
    assert "names a path; a model folder may not" in refusal(copy)


def test_the_folder_that_was_attacked_is_a_good_one(folder):
    assert TextToImage.from_pretrained(folder).image_shape == (3, 32, 32)
    assert len(contents(folder)) == 8
