"""Optimizers: which one steps, and their state as it was saved."""

from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch

from twinckpt.checkpointer.loading import loads_as_usual


def unwrapped(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Return the optimizer that steps: a wrapper (as that of Accelerate) only passes calls on."""
    inner = getattr(optimizer, "optimizer", None)
    return unwrapped(inner) if isinstance(inner, torch.optim.Optimizer) else optimizer


def owned(optimizer: torch.optim.Optimizer) -> Iterator[torch.Tensor]:
    """Return the parameters that an optimizer steps."""
    return chain.from_iterable(group["params"] for group in optimizer.param_groups)


def owner(name: str, part_name: str, part: Any) -> torch.Tensor | None:
    """Return the parameter that a tensor called like `optimizer.state.3.exp_avg` belongs to."""
    prefix = f"{part_name}.state."
    if not isinstance(part, torch.optim.Optimizer) or not name.startswith(prefix):
        return None
    number, _, rest = name.removeprefix(prefix).partition(".")
    if not rest or not number.isdecimal():
        return None
    index = int(number)
    return next((found for i, found in enumerate(owned(part)) if i == index), None)


def load(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load a state and keep its types, where torch would cast it to those of the parameters."""
    optimizer.load_state_dict(saved)
    if type(optimizer).load_state_dict is not torch.optim.Optimizer.load_state_dict:
        return
    if loads_as_usual(optimizer):
        for group, given in zip(optimizer.param_groups, saved["param_groups"], strict=True):
            # Torch has made copies; a learning rate that the loop holds would not be the one used.
            group.update((k, v) for k, v in given.items() if isinstance(v, torch.Tensor))
    numbers = chain.from_iterable(group["params"] for group in saved["param_groups"])
    for number, parameter in zip(numbers, owned(optimizer), strict=True):
        values, loaded = saved["state"].get(number), optimizer.state.get(parameter)
        if isinstance(values, dict) and isinstance(loaded, dict):
            loaded.update(
                (key, _of_saved_type(loaded[key], value))
                for key, value in values.items()
                if key in loaded and key != "step"  # which torch casts only where it must
            )


def _of_saved_type(loaded: Any, saved: Any) -> Any:
    match loaded, saved:
        case torch.Tensor(), torch.Tensor():
            return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
        case (str(), str()) | (set() | frozenset(), _):  # torch garbles a text
            return saved
        case (list(), list()) | (tuple(), tuple()) if len(loaded) == len(saved):
            return type(saved)(_of_saved_type(*pair) for pair in zip(loaded, saved, strict=True))
        case dict(), dict() if loaded.keys() == saved.keys():
            return type(saved)({k: _of_saved_type(loaded[k], value) for k, value in saved.items()})
    return loaded
