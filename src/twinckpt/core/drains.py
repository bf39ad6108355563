"""When committed checkpoints are copied to persistent storage, and which step is safe there."""

from collections.abc import Iterable

SLOW_S = 60.0


class Drains:
    """At most one drain at a time, every so many commits or seconds; 0 means never."""

    def __init__(self, every_commits: int, every_s: float = 0.0) -> None:
        self.newest_step: int | None = None
        self._every_commits = every_commits
        self._every_s = every_s
        self._num_commits = 0
        self._began_at_s: float | None = None
        self.ticket, self.step = 0, 0  # what is drained, or was the last
        self.is_owed = False  # a step was due while another one was drained
        self._is_told = False
        self._awaited: set[str] = set()
        self._is_ok = True

    @property
    def is_enabled(self) -> bool:
        """Return whether anything is drained at all."""
        return bool(self._every_commits or self._every_s)

    @property
    def is_busy(self) -> bool:
        """Return whether a machine still copies: its slot must not be overwritten."""
        return bool(self._awaited)

    def has_become_slow(self, now_s: float) -> bool:
        """Return whether the drain has now taken longer than `SLOW_S`; True once for each drain."""
        is_slow = self.is_busy and now_s - (self._began_at_s or 0.0) > SLOW_S
        is_news, self._is_told = is_slow and not self._is_told, is_slow
        return is_news

    def has(self, step: int) -> bool:
        """Return whether this step, or a newer one, is safe in persistent storage."""
        return self.newest_step is not None and self.newest_step >= step

    def found(self, steps: Iterable[int]) -> None:
        """Note the complete steps that a machine sees in persistent storage."""
        for step in steps:
            self.newest_step = max(self.newest_step or 0, step)

    def are_only(self, steps: Iterable[int]) -> None:
        """Note that only these steps are complete: a machine found another one damaged."""
        self.newest_step = max(steps, default=None)

    def committed(
        self,
        ticket: int,
        step: int,
        machines: Iterable[str],
        now_s: float,
        *,
        is_wanted: bool = False,
    ) -> bool:
        """Count a commit; return whether these machines must copy it now.

        They must if a drain is due, or if somebody waits for a drained step (`is_wanted`). While
        another step is being drained nothing begins; the newest step is owed one then.
        """
        self._num_commits += 1
        if self._began_at_s is None:
            self._began_at_s = now_s
        is_due = bool(self._every_commits) and self._num_commits % self._every_commits == 0
        is_late = bool(self._every_s) and now_s - self._began_at_s >= self._every_s
        if not (is_due or is_late or is_wanted):
            return False
        if self.is_busy:
            self.is_owed = True
            return False
        self.begin(ticket, step, machines, now_s)
        return True

    def begin(self, ticket: int, step: int, machines: Iterable[str], now_s: float) -> None:
        """Note that these machines copy a committed step from now on."""
        self._began_at_s = now_s
        self.ticket, self.step, self.is_owed = ticket, step, False
        self._awaited, self._is_ok = set(machines), True

    def ended(self, machine: str, ticket: int, *, ok: bool) -> None:
        """Note that a machine has copied its shards, or failed to; once all have, the step is safe.

        The end of a drain that an earlier root began is ignored.
        """
        if ticket != self.ticket or machine not in self._awaited:
            return
        self._is_ok = self._is_ok and ok
        self._awaited.remove(machine)
        if not self._awaited and self._is_ok:
            self.found([self.step])

    def give_up(self) -> None:
        """Forget the drain of a generation that is over: nobody knows whether it was completed."""
        self._awaited, self.ticket, self.is_owed = set(), 0, False
