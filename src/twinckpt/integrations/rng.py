"""Generators of random numbers that are set when training goes on, not when it is restored.

Between the two a framework starts to iterate over its data, which draws numbers.
"""

from typing import Any

from twinckpt.checkpointer.rng import RngState


class RngToContinue:
    """State of all generators; a restored one waits for `apply`."""

    def __init__(self) -> None:
        self._live = RngState()
        self._restored: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        """Return copies of all generators' states."""
        return self._live.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keep a state for `apply`."""
        self._restored = state

    def apply(self) -> None:
        """Set all generators to the restored state, once; nothing without one."""
        state, self._restored = self._restored, None
        if state is not None:
            self._live.load_state_dict(state)


class RngNoted:
    """State of all generators as it was at the last `note`, or as it was restored."""

    def __init__(self) -> None:
        self._live = RngState()
        self.note()

    def note(self) -> None:
        """Keep the present state."""
        self._noted = self._live.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """Return what was noted."""
        return self._noted

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this state as noted."""
        self._noted = state

    def apply(self) -> None:
        """Set all generators to what was noted."""
        self._live.load_state_dict(self._noted)
