"""Bytes to train on that every machine has: the sources of Python's standard library."""

import hashlib
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from twinckpt.errors import ConfigurationError
from twinckpt.training.config import DataConfig

_NOT_STANDARD = frozenset({"site-packages", "dist-packages", "__pycache__"})


@dataclass(frozen=True)
class Corpus:
    """Training bytes."""

    data: torch.Tensor

    @classmethod
    def load(cls, config: DataConfig) -> "Corpus":
        """Map the configured file, or read the standard library's sources in path order.

        A mapped file costs a restarted rank nothing until it is read, and memory once per host.
        """
        if config.path:
            size = min(Path(config.path).stat().st_size, config.max_bytes)
            data = torch.from_file(config.path, size=size, dtype=torch.uint8)
        else:
            raw = _standard_library(config.max_bytes)[: config.max_bytes]
            data = torch.frombuffer(bytearray(raw), dtype=torch.uint8)
        if len(data) < 1 << 12:
            raise ConfigurationError(
                f"{len(data)} bytes of training data: at least 4096 are needed"
            )
        return cls(data)

    @cached_property
    def sha256(self) -> str:
        """Return the SHA-256 of the bytes."""
        return hashlib.sha256(self.data.numpy().data).hexdigest()

    def write(self, path: Path) -> None:
        """Write the bytes where ranks can map them."""
        path.write_bytes(self.data.numpy().data)


class DataPosition:
    """Which bytes come next on this rank: its own random order, resumable at any step."""

    def __init__(self, corpus: Corpus, batch: int, context: int, seed: int, rank: int) -> None:
        self._corpus = corpus
        self._batch, self._context = batch, context
        self._generator = torch.Generator().manual_seed(seed * 100_003 + rank)
        self.num_batches = 0

    def next_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs and targets, both (batch, context) of int64."""
        last = len(self._corpus.data) - self._context - 1
        starts = torch.randint(last, (self._batch,), generator=self._generator)
        windows = torch.stack(
            [self._corpus.data[start : start + self._context + 1] for start in starts.tolist()]
        ).long()
        self.num_batches += 1
        return windows[:, :-1], windows[:, 1:]

    def state_dict(self) -> dict[str, Any]:
        """Return this rank's position in its data."""
        return {"num_batches": self.num_batches, "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to a position that `state_dict` returned."""
        self.num_batches = state["num_batches"]
        self._generator.set_state(state["generator"])


def _standard_library(max_bytes: int) -> bytes:
    """Return the first sources in path order, at least `max_bytes` if there are so many.

    Directories beyond that are not even listed.
    """
    parts: list[bytes] = []
    size = 0
    for path in _python_files(Path(sysconfig.get_paths()["stdlib"])):
        parts.append(path.read_bytes())
        size += len(parts[-1])
        if size >= max_bytes:
            break
    return b"".join(parts)


def _python_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _NOT_STANDARD:
            yield from _python_files(path)
        elif path.suffix == ".py":
            yield path
