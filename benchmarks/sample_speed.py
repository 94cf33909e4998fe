"""Times sampling with a trained model against diffusers, and says how good each picture is.

python benchmarks/sample_speed.py runs/quickstart/model

Prints one JSON object; the exit code is 1 if a promise is broken. See benchmarks/README.md.
"""

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _diffusers_sampling import SCHEDULERS, rival_pace, start_rival
from _measuring import (
    OwnProcess,
    forward_flops,
    in_turns,
    machine,
    now,
    ratio,
    rounded,
    summary,
)
from _rivals import Inputs

from tinydiffusion.build import build_evaluators, build_validation
from tinydiffusion.config import SamplingConfig
from tinydiffusion.evaluation.target import evaluate_pipeline
from tinydiffusion.pipeline import TextToImage
from tinydiffusion.planning.calls import num_evaluations
from tinydiffusion.protocols import Dataset
from tinydiffusion.runtime.allocator import keep_freed_memory
from tinydiffusion.survey import evaluation_prompts

ROOT = Path(__file__).parent.parent
REFERENCE = "ddpm:1000"
SAMPLERS = ("ddim", "ddpm", "dpmpp_2m", "euler", "heun")
FAST = [f"{name}:{steps}" for name in SAMPLERS for steps in (4, 10, 20, 50)]
QUICK = ["ddpm:2", "heun:3"]
METRICS = ("scene_accuracy", "pixel_fd")
SHOWN = ("scene_accuracy", "scene_accuracy/one_object", "scene_accuracy/two_objects", "pixel_fd")
MOST_EVALUATIONS, MAX_LOSS, MAX_PIXEL_FD = 10, 0.02, 1.1
"""What few steps must cost at most, and how near to `REFERENCE` they must come."""
STUDENT_EVALUATIONS, STUDENT_LOSS = 4, 0.05
"""Likewise for a distilled model; its pixel distance is printed, and no bar is set for it."""
LONG = 100
"""Steps beyond which half of the pictures are timed: a picture then takes seconds."""
MIN_RATIO = 2.5  # of diffusers' pictures per second
MAX_FIRST_PICTURE = 6.0  # seconds


def sampling_of(setting: str, default: SamplingConfig) -> SamplingConfig:
    """What is set by a word such as "euler:10"; guidance and spacing as the model has them."""
    sampler, _, steps = setting.partition(":")
    return dataclasses.replace(default, sampler=sampler, steps=int(steps))


# ---- ours ------------------------------------------------------------------------------------


_pipeline: TextToImage  # of this process: each contestant has one to itself


def start_ours(model: Path, device: str) -> None:
    """Open the model as `sample.py` does."""
    global _pipeline
    keep_freed_memory()
    _pipeline = TextToImage.from_pretrained(model, device=device)


def our_pace(prompts: Sequence[str], sampling: SamplingConfig) -> float:
    """Pictures per second, text encoding included, after a step that wakes kernels and caches."""
    once = dataclasses.replace(_pipeline.config.sampling, steps=1)
    _pipeline.generate(prompts, sampling=once, batch_size=len(prompts))
    start = now(_pipeline.device)
    _pipeline.generate(prompts, sampling=sampling, batch_size=len(prompts))
    return len(prompts) / (now(_pipeline.device) - start)


def first_picture(model: Path, prompt: str, flags: Sequence[str], device: str) -> float:
    """Seconds from the start of a process to the PNG file of one picture."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "sample.py", str(model.resolve()), prompt, "--out", folder]
        start = now(torch.device("cpu"))
        subprocess.run(
            [*command, "--device", device, *flags],
            cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=True, capture_output=True,
        )  # fmt: skip
        return now(torch.device("cpu")) - start


def quality(
    pipeline: TextToImage, reference: Dataset, sampling: SamplingConfig, num_images: int
) -> dict[str, float]:
    """Scene accuracy, also by the number of objects, and pixel distance."""
    evaluators = build_evaluators(METRICS, {})
    rows = evaluate_pipeline(
        pipeline, evaluators, reference, num_images=num_images, sampling=sampling
    )
    return {row["name"]: rounded(row["value"]) for row in rows if row["name"] in SHOWN}


# ---- all of it -------------------------------------------------------------------------------


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is measured."""
    keep_freed_memory()
    pipeline = TextToImage.from_pretrained(options.model, device=options.device)
    reference = build_validation(pipeline.config)
    if reference is None:
        raise SystemExit(f"the config of {options.model} has no `validation` to take prompts from")
    prompts = evaluation_prompts(reference, options.batch_size)
    cold = partial(first_picture, options.model, prompts[0], device=options.device)
    default = pipeline.config.sampling
    flops, shapes = forward_pass(pipeline)
    with ExitStack() as stack:
        ours, theirs = (stack.enter_context(OwnProcess()) for _ in range(2))
        ours(start_ours, options.model, options.device)
        rival = theirs(
            start_rival, flops, (len(prompts), *shapes), default.guidance_scale, options.device,
            options.rounds, options.rival_keeps_memory,
        )  # fmt: skip
        result = {
            "machine": machine(pipeline.device),
            "model": str(options.model),
            "networks": {
                "ours": {
                    "parameters": sum(p.numel() for p in pipeline.network.parameters()),
                    "forward_gflop": rounded(flops / 1e9),
                    "precision": pipeline.precision,
                },
                "diffusers": rival,
            },
            "batch_size": options.batch_size,
            "num_images": options.num_images,
            "guidance_scale": default.guidance_scale,
            "guidance_interval": default.guidance_interval,
            "default": {
                "setting": f"{default.sampler}:{default.steps}",
                "first_picture_s": summary([cold(flags=()) for _ in range(options.rounds)]),
            },
            "settings": {},
        }
        more_flops = flops / 1e9 / rival["forward_gflop"]
        for setting in options.settings:
            print(setting, file=sys.stderr)
            sampling = sampling_of(setting, default)
            flags = ("--sampler", sampling.sampler, "--steps", str(sampling.steps))
            result["settings"][setting] = {
                "evaluations": num_evaluations(pipeline, sampling),
                **speeds((ours, theirs), prompts, sampling, options.rounds, more_flops),
                "first_picture_s": summary([cold(flags=flags) for _ in range(options.rounds)]),
                "quality": quality(pipeline, reference, sampling, options.num_images),
            }
    if options.student is not None:
        result["student"] = student(options, prompts, reference)
    return result


def forward_pass(pipeline: TextToImage) -> tuple[int, tuple[int, int, int]]:
    """FLOPs of the network for one picture; the picture's side, tokens and their width."""
    encoder = pipeline.text_encoder
    shapes = (pipeline.image_shape[-1], encoder.max_length, encoder.hidden_size)
    one = Inputs.random(1, *shapes, pipeline.device)
    call = partial(pipeline.network, one.sample, one.timesteps.float(), one.text)
    return forward_flops(call), shapes


def student(
    options: argparse.Namespace, prompts: Sequence[str], reference: Dataset
) -> dict[str, Any]:
    """The same of a distilled model, sampled as its folder says."""
    print(options.student, file=sys.stderr)
    pipeline = TextToImage.from_pretrained(options.student, device=options.device)
    sampling = pipeline.config.sampling
    cold = partial(first_picture, options.student, prompts[0], (), options.device)
    with OwnProcess() as process:
        process(start_ours, options.student, options.device)
        paces = [process(our_pace, prompts, sampling) for _ in range(options.rounds)]
    return {
        "model": str(options.student),
        "setting": f"{sampling.sampler}:{sampling.steps}",
        "guidance_scale": sampling.guidance_scale,
        "evaluations": num_evaluations(pipeline, sampling),
        "pictures_per_s": summary(paces),
        "first_picture_s": summary([cold() for _ in range(options.rounds)]),
        "quality": quality(pipeline, reference, sampling, options.num_images),
    }


def speeds(
    processes: tuple[OwnProcess, OwnProcess],
    prompts: Sequence[str],
    sampling: SamplingConfig,
    rounds: int,
    more_flops: float,
) -> dict[str, Any]:
    """Pictures per second, ours and in turns with it those of diffusers' scheduler.

    And their ratio at equal FLOPs: the rival is the next smaller network, ours has `more_flops`.
    """
    ours, theirs = processes
    timed = prompts[:: 2 if sampling.steps > LONG else 1]
    contestants = {"ours": partial(ours, our_pace, timed, sampling)}
    scheduler = SCHEDULERS.get(sampling.sampler)
    if scheduler is not None:
        contestants["diffusers"] = partial(
            theirs, rival_pace, scheduler, sampling.steps, len(timed)
        )
    paces = in_turns(contestants, rounds)
    row = {"pictures_per_s": summary(paces["ours"])}
    if scheduler is None:
        return row
    compared = ratio(paces["ours"], paces["diffusers"])
    return {
        **row,
        "diffusers": {"scheduler": scheduler, "pictures_per_s": summary(paces["diffusers"])},
        "ratio": {**compared, "at_equal_flops": rounded(compared["median"] * more_flops)},
    }


def verdict(result: Mapping[str, Any]) -> dict[str, list[str]]:
    """What is broken and what was not measured, in words."""
    settings = result["settings"]
    seconds = result["default"]["first_picture_s"]["median"]
    broken = [
        f"{name}: {row['ratio']['median']} times diffusers' pictures/s, {MIN_RATIO} were promised"
        for name, row in settings.items()
        if "ratio" in row and row["ratio"]["median"] < MIN_RATIO
    ]
    if seconds > MAX_FIRST_PICTURE:
        broken.append(f"first picture after {seconds} s, at most {MAX_FIRST_PICTURE} promised")
    broken += student_verdict(result)
    few = {n: r for n, r in settings.items() if r["evaluations"] <= MOST_EVALUATIONS}
    if REFERENCE not in settings or not few:
        return {"broken": broken, "not_measured": [f"few steps as good as {REFERENCE}"]}
    if not any(as_good(row["quality"], settings[REFERENCE]["quality"]) for row in few.values()):
        broken.append(
            f"none of {', '.join(few)} comes within {MAX_LOSS} of the scene_accuracy and "
            f"{MAX_PIXEL_FD} times the pixel_fd of {REFERENCE}"
        )
    return {"broken": broken, "not_measured": []}


def student_verdict(result: Mapping[str, Any]) -> list[str]:
    """What is broken of a distilled model's promise, in words."""
    student, reference = result.get("student"), result["settings"].get(REFERENCE)
    if student is None or reference is None:
        return []
    accuracy = student["quality"]["scene_accuracy"]
    least = reference["quality"]["scene_accuracy"] - STUDENT_LOSS
    broken = []
    if accuracy < least:
        broken.append(f"the student's scene_accuracy is {accuracy}, {least:.4g} was promised")
    if student["evaluations"] > STUDENT_EVALUATIONS:
        broken.append(f"the student takes {student['evaluations']} evaluations a picture")
    return broken


def as_good(quality: Mapping[str, float], reference: Mapping[str, float]) -> bool:
    """Whether nothing worth speaking of is lost."""
    return (
        quality["scene_accuracy"] >= reference["scene_accuracy"] - MAX_LOSS
        and quality["pixel_fd"] <= reference["pixel_fd"] * MAX_PIXEL_FD
    )


def main() -> int:
    """The exit code: 1 if a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path, help="a model folder trained on scenes")
    parser.add_argument("--settings", nargs="+", metavar="SAMPLER:STEPS", default=None)
    parser.add_argument("--student", type=Path, help="a model folder distilled from it")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--num-images", type=int, default=256, help="that are measured")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--rival-keeps-memory", action="store_true", help="as ours does, see `keep_freed_memory`"
    )
    parser.add_argument("--quick", action="store_true", help="few pictures, which prove nothing")
    options = parser.parse_args()
    options.settings = options.settings or (QUICK if options.quick else [REFERENCE, *FAST])
    if options.quick:
        options.rounds, options.batch_size, options.num_images = 1, 2, 4
    result = run(options)
    result |= {"broken": [], "not_measured": []} if options.quick else verdict(result)
    print(json.dumps(result, indent=1))
    return 1 if result["broken"] else 0


if __name__ == "__main__":
    sys.exit(main())
