"""A generation that goes on under another root: what must be known before anything is decided.

A root leaves a record of the generation it formed where its successor finds it. The successor
waits until every machine of that generation has said what it does; meanwhile nothing is committed,
and what machines report is kept. A machine that has stopped, or does not come back in time, ends
the generation.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from twinckpt.core import messages as m


@dataclass(frozen=True, slots=True)
class GenerationRecord:
    """A generation as it was formed: the machines in their places, and the step they resumed."""

    number: int
    places: tuple[str, ...]
    resume: m.Resume | None = None


class Adoption:
    """Gathers what the machines of `record` say; times are those of the new root's clock."""

    def __init__(self, record: GenerationRecord, now_s: float) -> None:
        self.record = record
        self.told: dict[str, m.Running] = {}
        self._heard_s = now_s
        self._reports: list[tuple[str, m.ToRoot]] = []

    def hear(self, machine: str, running: m.Running, now_s: float) -> None:
        """Note that a machine of the generation is back, and what it says it does."""
        self.forget(machine)
        self.told[machine] = running
        self._heard_s = now_s

    def forget(self, machine: str) -> None:
        """Drop what a machine said and reported: its connection ended, and it must come back."""
        self.told.pop(machine, None)
        self._reports = [report for report in self._reports if report[0] != machine]

    def keep(self, machine: str, message: m.ToRoot) -> None:
        """Keep what a machine reports after it has said what it does."""
        if machine in self.told:
            self._reports.append((machine, message))

    def reports(self) -> Iterator[tuple[str, m.ToRoot]]:
        """Return what was kept, in the order in which it came."""
        return iter(self._reports)

    @property
    def missing(self) -> list[str]:
        """Return the machines that have not come back."""
        return [name for name in self.record.places if name not in self.told]

    def is_late(self, now_s: float, timeout_s: float) -> bool:
        """Return whether no machine has come back for longer than `timeout_s`."""
        return now_s - self._heard_s > timeout_s
