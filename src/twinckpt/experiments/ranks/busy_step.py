"""A training step that keeps a core, or a GPU, busy for a given time, and touches no state."""

import math
import time

import torch
import torch.distributed as dist

_WORK_SIZES = {"cpu": 256, "cuda": 2048}
_SAMPLE_UNITS = 200


class BusyStep:
    """Small matrix products, equally many on each rank; `calibrate` sets their number."""

    def __init__(self, device: torch.device) -> None:
        self._units = 1
        size = _WORK_SIZES[device.type]
        self._work = torch.randn(size, size, device=device)
        self._product = torch.empty_like(self._work)

    def calibrate(self, seconds: float) -> None:
        """Make a step at least about this long on every rank when all ranks compute at once."""
        self._finish()
        dist.barrier()
        started_s = time.monotonic()
        self._compute(_SAMPLE_UNITS)
        self._finish()
        dist.barrier()
        unit_s = (time.monotonic() - started_s) / _SAMPLE_UNITS
        wanted = torch.tensor(max(1.0, seconds / unit_s))
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        self._units = math.ceil(float(wanted))

    def run(self) -> None:
        """Compute one step; on a GPU it is only enqueued."""
        self._compute(self._units)

    def _compute(self, units: int) -> None:
        for _ in range(units):
            torch.mm(self._work, self._work, out=self._product)

    def _finish(self) -> None:
        if self._work.is_cuda:
            torch.cuda.synchronize(self._work.device)
