"""The Hugging Face hub: how it shows that it or a file cannot be read, and what to do."""

import importlib
import pickle
import tarfile
import zipfile
from pathlib import Path

DAMAGED = (zipfile.BadZipFile, tarfile.TarError, pickle.UnpicklingError, EOFError)
"""What readers of files raise beside OSError and ValueError where a file is cut or damaged."""

CLIENTS = {
    "huggingface_hub.errors": None,  # all that it defines: they have no common base
    "datasets.exceptions": None,
    "aiohttp": ("ClientError",),
    "pyarrow": ("ArrowException",),
    "safetensors": ("SafetensorError",),
}
"""Module -> its exceptions that tell of a network or a file."""

MOST = 300  # characters of a reason


def read_errors() -> tuple[type[Exception], ...]:
    """List the exceptions by which a hub out of reach or a damaged file shows.

    OSError covers connections, time-outs and requests' errors; ValueError what readers say of
    damaged files, of splits and of configurations. The packages add their own.
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
    """Say in one line what went wrong, with the first cause where the error hides it."""
    cause = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    reasons = dict.fromkeys(" ".join(str(e).split()) or type(e).__name__ for e in (error, cause))
    text = "; ".join(reasons).rstrip(".")
    return text if len(text) <= MOST else f"{text[:MOST]}..."


def hub_advice(local: str) -> str:
    """Say what was looked at, and what can be done about a name that was not found there.

    Args:
        local: What to give in place of the name, such as "set path to a folder".
    """
    from huggingface_hub import constants

    cache = Path(constants.HF_HOME)
    if constants.is_offline_mode():
        tried = f"HF_HUB_OFFLINE is set, so only the cache {cache} was looked at: unset it"
    else:
        tried = f"{constants.ENDPOINT} and the cache {cache} were tried: see to the network"
    return f"{tried}, copy the cache of a machine that has it, or {local}"
