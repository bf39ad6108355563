"""The two kernels for a GPU (`kernels.cu`): checksums of chunks, and copies of many pieces at once.

Checksums come at 2 TB/s, and no core of the host takes part. Compiling is done in the background,
since a process that does it first needs up to a second. Until then, and where there is no compiler,
the host does what they do.
"""

import functools
import logging
import threading
from pathlib import Path
from typing import Any

import torch

logger = logging.getLogger(__name__)

BLOCK_BYTES = 1024
_LANES = 8
_ROW_BLOCKS, _ROW_THREADS = 128, 256
_SOURCE = Path(__file__).with_name("kernels.cu")


class Kernels:
    """The kernels on one GPU, once they are compiled. Both run on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._compiled: tuple[Any, Any] | None = None
        self._compiling = threading.Thread(target=self._compile, name="compiling")
        self._compiling.start()

    def _compile(self) -> None:
        try:
            with torch.cuda.device(self.device):
                torch.cuda.synchronize()  # or this thread has no context yet
                source = _SOURCE.read_text()
                xxh3_64 = torch.cuda._compile_kernel(source, "xxh3_64")
                self._compiled = xxh3_64, torch.cuda._compile_kernel(source, "copy_all")
        except Exception as error:
            logger.info("the host verifies what is restored, a GPU cannot: %s", error)

    @property
    def are_ready(self) -> bool:
        """Whether they can be used; they never will where they cannot be compiled."""
        return self._compiled is not None

    def wait(self) -> None:
        """Return once it is known whether they can be compiled."""
        self._compiling.join()

    def take_checksums(self, data: torch.Tensor, digests: torch.Tensor, chunk_bytes: int) -> None:
        """Begin to take the checksum of each chunk of `data`.

        Args:
            data: bytes, as many whole chunks as `digests` has elements.
            digests: 64 bits each.
            chunk_bytes: a multiple of `BLOCK_BYTES`.
        """
        assert self._compiled is not None
        if len(digests):
            self._compiled[0](
                grid=(len(digests), 1, 1),
                block=(_LANES, 1, 1),
                args=[data, digests, chunk_bytes // BLOCK_BYTES],
            )

    def copy_all(self, pieces: torch.Tensor) -> None:
        """Begin to copy pieces of memory: a row each of target, source (addresses) and bytes."""
        assert self._compiled is not None
        if len(pieces):
            self._compiled[1](
                grid=(_ROW_BLOCKS, len(pieces), 1), block=(_ROW_THREADS, 1, 1), args=[pieces]
            )


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Return a GPU's kernels; the first call begins to compile them."""
    return Kernels(device)
