"""The baseline: each rank writes its whole state to a file with torch.save, and waits for it.

It writes the same state as the RAM checkpoint: parameters, both Adam moments, RNG, position.
"Written" means in persistent storage: file and directory are fsynced.
"""

import ctypes
import json
import mmap
import os
import re
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from twinckpt.checkpointer.reading import SavedTensors
from twinckpt.checkpointer.state import TrainingState

_NAME = re.compile(r"step-(\d+)-rank-(\d+)\.pt")


class DiskCheckpoint:
    """Blocking checkpoints of one rank in a directory that all ranks share."""

    def __init__(self, directory: Path, state: dict[str, Any], keep: int = 2) -> None:
        self._directory = directory
        self._state = TrainingState(state)
        self._rank = dist.get_rank() if dist.is_initialized() else 0
        self._world_size = dist.get_world_size() if dist.is_initialized() else 1
        self._keep = keep
        directory.mkdir(parents=True, exist_ok=True)

    def save(self, step: int) -> int:
        """Write this rank's state durably; return the bytes written."""
        flat = self._state.capture()
        path = self._path(step)
        draft = path.with_suffix(f".{os.getpid()}")
        with draft.open("wb") as file:
            torch.save({"json": flat.text, "tensors": flat.tensors}, file)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
        folder = os.open(self._directory, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)
        for old in self._own_steps()[: -self._keep]:
            self._path(old).unlink(missing_ok=True)
        return path.stat().st_size

    def restore(self) -> int | None:
        """Load the newest step that all ranks have; return it, or None."""
        step = self.newest_common_step()
        if step is None:
            return None
        saved = torch.load(self._path(step), weights_only=True, map_location="cpu")
        self._state.restore(json.loads(saved["json"]), SavedTensors(saved["tensors"]))
        return step

    def cool(self) -> bool:
        """Drop the newest step from the page cache; return whether `restore` should read storage.

        It will not on a file system in memory, and some file systems keep pages all the same.
        """
        step = self.newest_common_step()
        if step is None:
            return False
        drop_from_page_cache(self._path(step))
        return not is_cached(self._path(step))

    def newest_common_step(self) -> int | None:
        """Return the newest step of which every rank's file is complete."""
        ranks: dict[int, set[int]] = {}
        for path in self._directory.iterdir():
            match = _NAME.fullmatch(path.name)
            if match:
                ranks.setdefault(int(match[1]), set()).add(int(match[2]))
        complete = [step for step, found in ranks.items() if len(found) == self._world_size]
        return max(complete, default=None)

    def _own_steps(self) -> list[int]:
        matches = (_NAME.fullmatch(path.name) for path in self._directory.iterdir())
        return sorted(int(m[1]) for m in matches if m and int(m[2]) == self._rank)

    def _path(self, step: int) -> Path:
        return self._directory / f"step-{step:08d}-rank-{self._rank:05d}.pt"


def drop_from_page_cache(path: Path) -> None:
    """Ask the kernel to forget a file's pages, so that the next read comes from storage."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def is_cached(path: Path) -> bool:
    """Return whether any page of a file is in the page cache; this brings none into it."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
        start = ctypes.c_ubyte.from_buffer(mapped)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(mapped)), pages)
        del start  # else the mapping could not be closed
        return bool(failed) or any(page & 1 for page in pages)
