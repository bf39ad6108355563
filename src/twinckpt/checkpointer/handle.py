"""What `save` returns: how far one checkpoint has come."""

import operator
import time
from collections.abc import Callable
from typing import Literal

from twinckpt.errors import ConfigurationError

Status = Literal["skipped", "staging", "staged", "replicated", "committed", "abandoned", "failed"]
_ORDER: tuple[Status, ...] = ("staging", "staged", "replicated", "committed")


class SaveHandle:
    """The progress of one `save`.

    skipped: no slot was free, the previous checkpoint is still being replicated ·
    staging: being copied · staged: complete in this machine's RAM · replicated: sealed on
    all machines of this one's replica group · committed: all ranks' shards are sealed on all
    machines of their replica groups · abandoned: another rank did not checkpoint this step ·
    failed: see `error`.
    """

    def __init__(self, step: int, advance: Callable[[float], None]) -> None:
        self.step = step
        self.error: Exception | None = None
        self._progress: Status = "staging"
        self._outcome: Status | None = None
        self._advance = advance

    @property
    def status(self) -> Status:
        """What is reached; one of the statuses above."""
        return self._outcome or self._progress

    @property
    def is_final(self) -> bool:
        """Whether the status will not change any more."""
        return self._outcome is not None

    def reach(self, status: Status) -> None:
        """Go on to this status; a final one stays.

        A checkpoint may be abandoned in one thread while another still copies it: progress and
        outcome are kept apart, so that it does not matter which thread is the later.
        """
        if status in _ORDER[:-1]:
            self._progress = status
        else:
            self._outcome = self._outcome or status

    def wait(self, status: Status = "committed", timeout_s: float = 60.0) -> Status:
        """Block until this status, or a final one, is reached; return the status.

        Raises TimeoutError after `timeout_s`, ConfigurationError for what is no status.
        """
        if status not in _ORDER:
            raise ConfigurationError(f"wait({status!r}): wait for one of {', '.join(_ORDER)}")
        deadline_s = time.monotonic() + timeout_s
        while not self.is_final and _ORDER.index(self.status) < _ORDER.index(status):
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                raise TimeoutError(
                    f"step {self.step} is {self.status}, not {status}, after {timeout_s:.0f} s"
                )
            self._advance(left_s)
        return self.status


def checked_step(step: int, newest_step: int) -> int:
    """Return a step as an int; raises ConfigurationError unless it can come after `newest_step`."""
    try:
        step = operator.index(step)
    except TypeError as error:
        raise ConfigurationError(f"save({step!r}): a step is a whole number") from error
    if step < max(0, newest_step):
        raise ConfigurationError(
            f"save({step}) after step {newest_step}: steps must grow from save to save, as a count "
            "over all epochs does"
        )
    return step
