"""A training step that keeps a core busy for as long as it was told to, and touches no state."""

import math
import time

import torch
import torch.distributed as dist

_WORK_SIZE = 256
_SAMPLE_UNITS = 200


class BusyStep:
    """Small matrix products, as many on each rank, `calibrate`d by the slowest of them."""

    def __init__(self) -> None:
        self._units = 1
        self._work = torch.randn(_WORK_SIZE, _WORK_SIZE)

    def calibrate(self, seconds: float) -> None:
        """Make a step about this long when all ranks compute at once."""
        dist.barrier()
        started_s = time.monotonic()
        self._compute(_SAMPLE_UNITS)
        dist.barrier()
        unit_s = (time.monotonic() - started_s) / _SAMPLE_UNITS
        wanted = torch.tensor(max(1.0, seconds / unit_s))
        dist.all_reduce(wanted, op=dist.ReduceOp.MAX)
        self._units = math.ceil(float(wanted))

    def run(self) -> None:
        """Compute one step."""
        self._compute(self._units)

    def _compute(self, units: int) -> None:
        for _ in range(units):
            torch.mm(self._work, self._work)
