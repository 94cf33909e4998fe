"""`tinydiffusion plugins`: list the plug-ins."""

import argparse

from tinydiffusion import registry
from tinydiffusion.cli.arguments import parsed

HELP = "List the plug-ins and where they come from."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `plugins`."""
    parser.add_argument("kind", nargs="?", choices=list(registry.KINDS), help="One kind only.")


def run(parser: argparse.ArgumentParser, arguments: list[str]) -> int:
    """Run `plugins` and return its exit code."""
    known = parsed(parser, arguments)
    for kind in [known.kind] if known.kind else registry.KINDS:
        for name in registry.names(kind):
            print(f"{kind:17} {name:15} {registry.origin(kind, name)}")  # noqa: T201
    return 0
