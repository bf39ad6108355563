"""What the root wants done: messages to workers, connections to close, events for the log."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from twinckpt.core import messages as m


@dataclass(frozen=True, slots=True)
class Send:
    """Action: deliver `message` to `machine`."""

    machine: str
    message: m.ToWorker


@dataclass(frozen=True, slots=True)
class Log:
    """Action: append an event to the job's event log."""

    event: str
    fields: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Disconnect:
    """Action: close the connection of a machine that counts as lost."""

    machine: str


Action = Send | Log | Disconnect


class Outbox:
    """Actions in the order they were decided, until whoever drives the root takes them."""

    def __init__(self) -> None:
        self._actions: list[Action] = []

    def send(self, machine: str, message: m.ToWorker) -> None:
        """Deliver a message to one machine."""
        self._actions.append(Send(machine, message))

    def broadcast(self, machines: Iterable[str], message: m.ToWorker) -> None:
        """Deliver a message to several machines."""
        self._actions.extend(Send(machine, message) for machine in machines)

    def disconnect(self, machine: str) -> None:
        """Close a machine's connection."""
        self._actions.append(Disconnect(machine))

    def log(self, event: str, generation: int, **fields: Any) -> None:
        """Note an event of a generation."""
        self._actions.append(Log(event, {"generation": generation, **fields}))

    def take(self) -> list[Action]:
        """Return what was decided since the last call."""
        actions, self._actions = self._actions, []
        return actions
