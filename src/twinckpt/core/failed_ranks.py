"""Ranks that end by themselves: one that keeps failing at the same step is not started again."""


class FailedRanks:
    """Counts failures in a row after one and the same step; `limit` of them are too many."""

    def __init__(self, limit: int) -> None:
        self.num_failures = 0
        self._limit = limit
        self._at_step: int | None = None

    def count(self, exit_code: int | None, step: int) -> bool:
        """Count a rank lost after `step`; return whether to give the job up.

        Only a rank that ended itself, with a positive exit code, counts against the job.
        """
        failed_itself = exit_code is not None and exit_code > 0
        if failed_itself and step == self._at_step:
            self.num_failures += 1
        else:
            self._at_step = step if failed_itself else None
            self.num_failures = int(failed_itself)
        return self.num_failures >= self._limit
