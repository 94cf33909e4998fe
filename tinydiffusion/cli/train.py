"""`tinydiffusion train`: train a model by a config, or estimate what that costs."""

import argparse
from pathlib import Path

from tinydiffusion import config
from tinydiffusion.cli.arguments import count, parsed_with_settings
from tinydiffusion.runtime.outputs import OutputFile, OutputFolder, check_folder

HELP = "Train a text-to-image model."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `train`."""
    parser.add_argument(
        "--config", default="configs/quickstart.yaml", metavar="FILE",
        help="YAML file; default %(default)s.",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", type=OutputFolder(), metavar="DIR",
        help="Folder of the run; default runs/<name of the config file>.",
    )  # fmt: skip
    parser.add_argument(
        "--resume", type=Path, metavar="CHECKPOINT",
        help="Go on from this checkpoint folder; without it a run that is there goes on from its "
        "newest undamaged one.",
    )  # fmt: skip
    parser.add_argument(
        "--allow-change", nargs="+", default=[], metavar="KEY",
        help="Go on although this setting is another now, such as training.learning_rate; `data` "
        "for the pictures.",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true",
        help="Print the settings and what the run will cost in time, memory and disk, from a few "
        "steps; train nothing.",
    )  # fmt: skip
    parser.add_argument(
        "--devices", type=count, nargs="+", default=[1, 2, 4, 8], metavar="N",
        help="With --dry-run: tell of N devices like this one too; default 1 2 4 8.",
    )  # fmt: skip
    parser.add_argument(
        "--json", type=OutputFile("plan.json", "tinydiffusion.plan/"), metavar="FILE",
        help="With --dry-run: write all of it as JSON too.",
    )  # fmt: skip


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `train` and return its exit code."""
    known, overrides = parsed_with_settings(parser, arguments)
    from tinydiffusion.run.config_pictures import load_noting

    settings, notes = load_noting(known.config, overrides)
    run_dir = known.run_dir or Path("runs") / Path(known.config).stem
    check_folder(run_dir)
    from tinydiffusion.run.train import train

    return train(
        settings,
        run_dir,
        resume=known.resume,
        allow_change=known.allow_change,
        dry_run=known.dry_run,
        devices=known.devices,
        json_file=known.json,
        overwrite=known.overwrite,
        notes=notes,
    )


def epilog() -> str:
    """Describe the settings of a config, which are flags too."""
    return (
        "Any key of the config is a flag too, such as --training.batch_size 32, and so is any\n"
        "option of a plug-in, such as --network.channels '[64, 128]':\n\n" + config.help_text()
    )
