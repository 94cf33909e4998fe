"""Text states of a frozen encoder, remembered per caption."""

import hashlib
import tempfile
from pathlib import Path
from typing import NamedTuple

from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

MAX_BYTES = 2**30


class CaptionStates(NamedTuple):
    """Text states of one caption, without padding."""

    hidden: Float[Tensor, "L D"]
    pooled: Float[Tensor, "P"]


class StatesCache:
    """Caption -> states, in memory up to `MAX_BYTES` and, given a folder, on disk as well.

    Args:
        folder: Where to keep one safetensors file per caption; None for memory only.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._memory: dict[str, CaptionStates] = {}
        self._num_bytes = 0

    def clear(self) -> None:
        """Forget what is in memory; files stay, as their names tell whose states they are."""
        self._memory.clear()
        self._num_bytes = 0

    def get(self, caption: str, fingerprint: str) -> CaptionStates | None:
        """The caption's states, or None.

        Args:
            caption: The caption.
            fingerprint: What tells encoders apart on disk: architecture and weights.

        Raises:
            ValueError: the file is damaged.
        """
        if caption in self._memory:
            return self._memory[caption]
        path = self._path(caption, fingerprint)
        if path is None or not path.exists():
            return None
        try:
            states = CaptionStates(**load_file(path))
        except SafetensorError as error:
            raise ValueError(f"cached text states {path} are damaged; delete the file") from error
        self._remember(caption, states)
        return states

    def put(self, caption: str, fingerprint: str, states: CaptionStates) -> None:
        """Remember the states; a reader never sees half a file."""
        self._remember(caption, states)
        path = self._path(caption, fingerprint)
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
                file.write(save(states._asdict()))
            Path(file.name).replace(path)

    def _remember(self, caption: str, states: CaptionStates) -> None:
        self._memory[caption] = states
        self._num_bytes += sum(tensor.nbytes for tensor in states)
        while self._num_bytes > MAX_BYTES:
            oldest = self._memory.pop(next(iter(self._memory)))
            self._num_bytes -= sum(tensor.nbytes for tensor in oldest)

    def _path(self, caption: str, fingerprint: str) -> Path | None:
        if self.folder is None:
            return None
        text = f"{fingerprint}\n{caption}".encode("utf-8", "surrogatepass")
        name = hashlib.sha256(text).hexdigest()
        return self.folder / name[:2] / f"{name}.safetensors"
