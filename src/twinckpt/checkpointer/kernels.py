"""The two kernels for a GPU (`kernels.cu`): checksums of chunks, and copies of many pieces at once.

Checksums come at 2 TB/s, and no core of the host takes part. The kernels are compiled in the
background. Until then, and where that is impossible, the host does what they do.
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
_NAMES = ("xxh3_64", "copy_all")
_IMPOSSIBLE = "the host verifies what is restored, as the GPU cannot"


class Kernels:
    """The kernels on one GPU, once they are compiled. Both run on the current stream."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._binary: bytes | None = None
        self._loaded: dict[str, Any] = {}
        capability = "".join(map(str, torch.cuda.get_device_capability(device)))
        self._compiling = threading.Thread(target=self._compile, args=[capability])
        self._compiling.start()

    def _compile(self, capability: str) -> None:
        """Compile without a call to the GPU: that would disturb a loop that captures a graph."""
        try:
            self._binary = compiled(_SOURCE.read_bytes(), capability)
        except Exception as error:
            logger.info("%s: %s", _IMPOSSIBLE, error)

    def wait(self) -> None:
        """Return once it is known whether they can be compiled."""
        self._compiling.join()

    def are_ready(self) -> bool:
        """Return whether they can be used from now on; the first time, they are loaded."""
        if self._binary is not None:
            try:
                from torch.cuda._utils import _cuda_load_module

                with torch.cuda.device(self.device):
                    loaded: Any = _cuda_load_module(self._binary, list(_NAMES))
                self._loaded = loaded
            except Exception as error:
                logger.info("%s: %s", _IMPOSSIBLE, error)
            self._binary = None
        return bool(self._loaded)

    def take_checksums(self, data: torch.Tensor, digests: torch.Tensor, chunk_bytes: int) -> None:
        """Begin to take the checksum of each chunk of `data`.

        Args:
            data: bytes, as many whole chunks as `digests` has elements.
            digests: 64 bits each.
            chunk_bytes: a multiple of `BLOCK_BYTES`.
        """
        if len(digests):
            self._loaded["xxh3_64"](
                grid=(len(digests), 1, 1),
                block=(_LANES, 1, 1),
                args=[data, digests, chunk_bytes // BLOCK_BYTES],
            )

    def copy_all(self, pieces: torch.Tensor) -> None:
        """Begin to copy pieces of memory: a row each of target, source (addresses) and bytes."""
        if len(pieces):
            self._loaded["copy_all"](
                grid=(_ROW_BLOCKS, len(pieces), 1), block=(_ROW_THREADS, 1, 1), args=[pieces]
            )


def compiled(source: bytes, capability: str) -> bytes:
    """Return the binary that a GPU of a capability such as "90" runs.

    Raises ImportError without the bindings that torch for CUDA brings, and RuntimeError.
    """
    from cuda.bindings import nvrtc

    def checked(result: Any, value: Any = None) -> Any:
        if result != nvrtc.nvrtcResult.NVRTC_SUCCESS:
            raise RuntimeError(f"{_SOURCE.name} was not compiled: {result}")
        return value

    program = checked(*nvrtc.nvrtcCreateProgram(source, _SOURCE.name.encode(), 0, None, None))
    options = [f"--gpu-architecture=sm_{capability}".encode()]
    checked(*nvrtc.nvrtcCompileProgram(program, len(options), options))
    binary = bytes(checked(*nvrtc.nvrtcGetCUBINSize(program)))  # filled by the next call
    checked(*nvrtc.nvrtcGetCUBIN(program, binary))
    checked(*nvrtc.nvrtcDestroyProgram(program))
    return binary


@functools.cache
def kernels_on(device: torch.device) -> Kernels:
    """Return a GPU's kernels; the first call begins to compile them."""
    return Kernels(device)
