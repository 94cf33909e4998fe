"""A small diffusion model trained eagerly and through torch.compile; as a script, for tests.

Prints one JSON object per setting: how far the weights are apart, and what was compiled. Nothing
calls a C++ compiler: of torch.compile all is done but the last step. Its argument is the strategy
of the processes of torchrun.
"""

import functools
import json
import sys

import torch
from torch._dynamo.utils import counters

from tinydiffusion.build import build_objective
from tinydiffusion.config import from_dict
from tinydiffusion.datasets.scenes import ScenesDataset
from tinydiffusion.runtime.compilation import compile_trained
from tinydiffusion.runtime.processes import ALONE, joined
from tinydiffusion.survey import captions_of
from tinydiffusion.training.data_order import Batches
from tinydiffusion.training.learner import Learner

CONFIG = {
    # Some captions are cut, others emptied: how many is one more number for the text encoder.
    "text_encoder": {"name": "clip", "width": 16, "layers": 1, "heads": 2, "max_length": 8},
    "network": {
        "name": "unet", "channels": [8], "head_dim": 8, "attention_levels": [],
        "layers_per_block": 1, "patch_size": 4, "preview_size": 2,
    },
    "objective": {"name": "denoising", "caption_dropout_prob": 0.5},
}  # fmt: skip
DATASET = ScenesDataset(num_scenes=16, size=16)


def trained(objective, num_steps, processes=ALONE, strategy="ddp"):
    """The weights after a few steps of 4 pictures."""
    learner = Learner(
        objective, learning_rate=1e-3, precision="float32", processes=processes, strategy=strategy
    )
    share = (processes.rank, processes.count)
    batches = Batches(DATASET, 4 // processes.count, 3, share=share).starting_at(0)
    for _ in range(num_steps):
        learner.step([next(batches)], 1.0)
    batches.close()
    return {name: weight.clone() for name, weight in learner.checkpoint({}).model.items()}


def compare(processes, strategy, **network):
    torch._dynamo.reset()
    counters.clear()
    config = from_dict({**CONFIG, "network": {**CONFIG["network"], **network}})
    captions = [caption for example in DATASET for caption in captions_of(example)]
    eager, compiled, new = (build_objective(config, captions) for _ in range(3))
    compile_trained(compiled.denoiser.network, compiled.text_encoder)
    together = {"processes": processes, "strategy": strategy}
    eager, compiled = (trained(each, 3, **together) for each in (eager, compiled))
    return {
        "difference": largest_difference(eager, compiled),
        "changed": largest_difference(dict(new.named_parameters()), compiled),
        "graphs": counters["stats"]["unique_graphs"],
        "graph_breaks": sum(counters["graph_break"].values()),
    }


def largest_difference(left, right):
    return max((abs(left[name] - right[name]).max().item() for name in right), default=None)


def main(strategy="ddp"):
    torch.compile = functools.partial(torch.compile, backend="aot_eager")
    torch._dynamo.config.error_on_recompile = strategy == "ddp"  # FSDP2's blocks share their code
    torch.set_num_threads(1)
    with joined("cpu") as processes:
        told = [compare(processes, strategy, gradient_checkpointing=on) for on in (False, True)]
        if processes.is_main:
            print(json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
