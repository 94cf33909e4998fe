"""Errors of the Hugging Face hub: which exceptions it raises, and advice for the user."""

import importlib
import pickle
import tarfile
import zipfile
from pathlib import Path

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, pickle.UnpicklingError, EOFError)
"""Exceptions, besides OSError and ValueError, that readers raise on truncated or damaged files."""

CLIENTS = {
    "huggingface_hub.errors": None,  # all of its exceptions: they have no common base
    "datasets.exceptions": None,
    "aiohttp": ("ClientError",),
    "pyarrow": ("ArrowException",),
    "safetensors": ("SafetensorError",),
}
"""Module -> its exceptions for errors of the network or of a file."""

MOST = 300  # characters of a reason


def read_errors() -> tuple[type[Exception], ...]:
    """Return the exceptions that an unreachable hub or a damaged file may cause.

    OSError covers connections, time-outs and the errors of requests; ValueError covers damaged
    files and wrong splits and configurations. The packages add their own.
    """
    found: list[type[Exception]] = [OSError, ValueError, *DAMAGED]
    for module_name, names in CLIENTS.items():
        try:
            module = importlib.import_module(module_name)
        except ImportError:  # then nothing can raise them
            continue
        members = vars(module)
        exceptions = [members[name] for name in names] if names else members.values()
        found += [e for e in exceptions if isinstance(e, type) and issubclass(e, Exception)]
    return tuple(dict.fromkeys(found))


def reason_of(error: BaseException) -> str:
    """Return the error's message on one line, with that of its first cause where they differ."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reasons = dict.fromkeys(" ".join(str(e).split()) or type(e).__name__ for e in (error, cause))
    text = "; ".join(reasons).rstrip(".")
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def hub_advice(local: str) -> str:
    """Return where a name was looked up, and what to do if it was not found there.

    Args:
        local: Advice to use a local copy instead, such as "set path to a folder".
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HOME)
    if constants.is_offline_mode():
        tried = f"HF_HUB_OFFLINE is set, so only the cache {cache} was looked at: unset it"
    else:
        tried = f"{constants.ENDPOINT} and the cache {cache} were tried: see to the network"
    return f"{tried}, copy the cache of a machine that has it, or {local}"
