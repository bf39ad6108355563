"""The parts of a user's state: what has a state of its own, found in nested containers.

    {"model": model, "optimizers": [first, second], "progress": {"samples": 0}}

has the parts `model`, `optimizers.0`, `optimizers.1` and `progress`: a container is taken
apart only if something in it has a `state_dict` or is a generator of random numbers.
"""

from collections.abc import Iterator, MutableMapping
from typing import Any

import torch

from twinckpt.checkpointer.rng import Generator
from twinckpt.checkpointer.tree import is_plain_key
from twinckpt.errors import ConfigurationError

# Most of what containers hold, many thousands at times: looked at in every save.
_LEAVES = {type(None), bool, int, float, str, torch.Tensor, torch.nn.Parameter}


class Parts:
    """The parts by name, as they are in the user's containers at the time of each call."""

    def __init__(self, state: MutableMapping[str, Any]) -> None:
        self._state = state
        self._homes: dict[str, tuple[Any, Any]] = {}

    def items(self) -> list[tuple[str, Any]]:
        """Return names and parts.

        Raises ConfigurationError if there are none, two have the same name, or one could not be
        restored.
        """
        if not self._state:
            raise ConfigurationError("the state is empty: name at least one thing to checkpoint")
        self._homes = {}
        try:
            places = list(self._walk(self._state, ""))
        except RecursionError:
            raise ConfigurationError(
                "a container in the state contains itself, and a part: take it out of itself"
            ) from None
        for name, container, key in places:
            if _is_known_by_identity(key):
                raise ConfigurationError(
                    f"a part of the state has a {type(key).__qualname__} as its key, which is "
                    "another one in the next process: give a list, or use names or numbers"
                )
            if name in self._homes:
                raise ConfigurationError(f"two parts of the state are called {name}: rename one")
            if isinstance(container, tuple) and not _is_filled(container[key]):
                raise ConfigurationError(
                    f"{name} is a {type(container[key]).__qualname__} in a tuple, where a restore "
                    "cannot replace it: use a list"
                )
            self._homes[name] = container, key
        if not all(map(is_plain_key, (*self._state, *self._homes))):
            raise ConfigurationError(
                "the names of the state's parts must be strings of Unicode text, and not '$'"
            )
        return [(name, container[key]) for name, (container, key) in self._homes.items()]

    def replace(self, name: str, value: Any) -> None:
        """Put a restored plain value where the old one was."""
        container, key = self._homes[name]
        if isinstance(container, tuple):  # it was of a kind that is filled, and is not now
            raise ConfigurationError(f"{name} cannot be replaced in a tuple: use a list")
        container[key] = value

    def _walk(self, container: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
        for key in _keys(container):
            name = f"{prefix}{key}"
            if _holds_stateful(container[key]):
                yield from self._walk(container[key], f"{name}.")
            else:
                yield name, container, key


def is_stateful(part: Any) -> bool:
    """Return whether a part gives and takes its state by itself."""
    return callable(getattr(part, "state_dict", None)) and callable(
        getattr(part, "load_state_dict", None)
    )


def _is_filled(part: Any) -> bool:
    """Return whether a restore writes into a part itself."""
    kinds = dict | list | set | torch.Tensor | Generator
    return is_stateful(part) or isinstance(part, kinds)


def _holds_stateful(value: Any, depth: int = 0) -> bool:
    """Return whether a container, which has no state of its own, has a part in it, at any depth."""
    if depth > 100:
        return False  # it contains itself, perhaps; that is refused elsewhere, by name
    if not isinstance(value, dict | list | tuple) or is_stateful(value):
        return False
    items = value.values() if isinstance(value, dict) else value
    return any(
        type(item) not in _LEAVES
        and (is_stateful(item) or isinstance(item, Generator) or _holds_stateful(item, depth + 1))
        for item in items
    )


def _is_known_by_identity(key: Any) -> bool:
    """Return whether a key equals nothing but itself, as a parameter does."""
    return isinstance(key, torch.Tensor) or type(key).__hash__ is object.__hash__


def _keys(container: Any) -> list[Any]:
    return list(container) if isinstance(container, MutableMapping) else [*range(len(container))]
