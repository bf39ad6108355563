"""The connection of a machine to the root, like TCP: delayed, in order, lost when it breaks.

A partition holds messages back; once it ends they arrive, unless one side gave the connection
up meanwhile. A message may be delivered twice in a row.
"""

from collections.abc import Callable

from twinckpt.simulation.events import Timeline
from twinckpt.simulation.machine import SimulatedMachine

_MEAN_DELAY_S = 0.003
_DUPLICATES = 0.02


class _Direction:
    def __init__(self, is_open: bool) -> None:
        self.is_open = is_open
        self.free_s = 0.0
        self.held_back: list[Callable[[], None]] = []


class Connection:
    """One connection; each side closes it for itself."""

    def __init__(self, timeline: Timeline, machine: SimulatedMachine) -> None:
        self.machine = machine
        self._timeline = timeline
        self._to_root = _Direction(True)
        self._to_worker = _Direction(True)

    def send_to_root(self, deliver: Callable[[], None]) -> None:
        """Send from the worker: call `deliver` at the root unless the root has closed its side."""
        self._send(self._to_root, deliver)

    def send_to_worker(self, deliver: Callable[[], None]) -> None:
        """Send from the root: call `deliver` at the worker unless it has closed its side."""
        self._send(self._to_worker, deliver)

    def close_at_root(self) -> None:
        """Close the root's side; messages under way to it are lost."""
        self._to_root.is_open = False

    def close_at_worker(self) -> None:
        """Close the worker's side; messages under way to it are lost."""
        self._to_worker.is_open = False

    def release(self) -> None:
        """Deliver the messages that a partition held back, now that it has ended."""
        for direction in (self._to_root, self._to_worker):
            held_back, direction.held_back = direction.held_back, []
            for deliver in held_back:
                self._arrive(direction, deliver)

    def _send(self, direction: _Direction, deliver: Callable[[], None]) -> None:
        timeline = self._timeline
        arrival_s = timeline.now_s + timeline.draw_s(_MEAN_DELAY_S)
        direction.free_s = max(arrival_s, direction.free_s + 1e-9)
        timeline.after(direction.free_s - timeline.now_s, self._arrive, direction, deliver)

    def _arrive(self, direction: _Direction, deliver: Callable[[], None]) -> None:
        machine = self.machine
        is_blocked = machine.is_mute if direction is self._to_root else machine.is_deaf
        if is_blocked or direction.held_back:
            direction.held_back.append(deliver)
        elif direction.is_open:
            deliver()
            if self._timeline.random.random() < _DUPLICATES and direction.is_open:
                deliver()
