"""Saves that are not decided: which ticket each one uses, and what the agent says of it."""

import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TypeVar

from twinckpt.checkpointer.agent_client import AgentClient, Grant
from twinckpt.checkpointer.handle import SaveHandle

DECISION_TIMEOUT_S = 30.0

_Item = TypeVar("_Item")


class SavesInFlight:
    """Handles of saves by their tickets, and grants of saves that failed.

    Any thread may take in what the agent has said, and leave the grant of a save that failed.
    """

    def __init__(self, client: AgentClient) -> None:
        self._client = client
        self._handles: dict[int, SaveHandle] = {}
        self._unused: list[Grant] = []

    def __contains__(self, grant: Grant) -> bool:
        return grant.ticket in self._handles

    def begin(self, grant: Grant, handle: SaveHandle) -> None:
        """Note that a save fills the slot of this grant."""
        self._handles[grant.ticket] = handle
        if not self._client.is_open(grant.ticket):  # a waiting thread has taken in the decision
            self._decide(grant.ticket, is_committed=False)

    def cancel(self, grant: Grant) -> None:
        """Forget a save that has come to nothing; its grant is used otherwise."""
        self._handles.pop(grant.ticket, None)

    def leave(self, grant: Grant) -> None:
        """Leave the grant of a save that has failed for the next save."""
        self._unused.append(grant)

    def take_back_unused(self) -> None:
        """Give back the grants of saves that failed, unless their tickets are decided."""
        while self._unused:
            grant = self._unused.pop()
            self.cancel(grant)
            self._client.give_back(grant)

    def forget_unused(self) -> None:
        """Drop the grants of saves that failed: their slots are not used any more."""
        self._unused.clear()

    def poll(self, timeout_s: float = 0.0) -> None:
        """Take in what the agent has said of these saves; raises what it refused."""
        self._client.poll(timeout_s)
        for ticket in _taken_from(self._client.replicated):
            handle = self._handles.get(ticket)
            if handle is not None:
                handle.reach("replicated")
        for resolved in _taken_from(self._client.resolved):
            self._decide(resolved.ticket, resolved.committed)

    def wait(self) -> None:
        """Return once all are decided; another rank may not have saved the same steps."""
        for handle in list(self._handles.values()):
            with contextlib.suppress(TimeoutError):
                handle.wait(timeout_s=DECISION_TIMEOUT_S)

    def _decide(self, ticket: int, is_committed: bool) -> None:
        handle = self._handles.pop(ticket, None)
        if handle is not None:
            handle.reach("committed" if is_committed else "abandoned")


def _taken_from(queue: deque[_Item]) -> Iterator[_Item]:
    """Take all items off a queue, which other threads may take from as well."""
    while True:
        try:
            yield queue.popleft()
        except IndexError:
            return
