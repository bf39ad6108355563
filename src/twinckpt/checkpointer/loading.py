"""What torch's own code does with a state that it is given to load.

Other code may do anything with it, and is left to itself.
"""

from collections.abc import Iterable
from typing import Any

import torch

_MAX_TOLD = 3


def loads_as_usual(part: Any) -> bool:
    """Return whether only torch's own code handles what is loaded; other code may replace it."""
    if isinstance(part, torch.optim.Optimizer):
        return (
            type(part).load_state_dict is torch.optim.Optimizer.load_state_dict
            and not part._optimizer_load_state_dict_pre_hooks
            and not part._optimizer_load_state_dict_post_hooks
        )
    if (
        not isinstance(part, torch.nn.Module)
        or type(part).load_state_dict is not torch.nn.Module.load_state_dict
    ):
        return False
    loaders: list[Any] = []
    for module in part.modules():
        loaders.append(type(module)._load_from_state_dict)
        hooks: Iterable[Any] = module._load_state_dict_pre_hooks.values()
        loaders += [wrapped.hook for wrapped in hooks]
    return all(getattr(loader, "__module__", "").startswith("torch.") for loader in loaders)


def has_extra_state(part: Any) -> bool:
    """Return whether a module's own `set_extra_state` is given values, which it may look at."""
    own = torch.nn.Module.set_extra_state
    return isinstance(part, torch.nn.Module) and any(
        type(module).set_extra_state is not own for module in part.modules()
    )


def misfit(part: torch.nn.Module | torch.optim.Optimizer, live: Any, value: Any) -> str:
    """Return why a part that loads as usual would refuse a state, before any is filled; else ""."""
    if not isinstance(value, dict):
        return ""
    if isinstance(part, torch.nn.Module):
        if _may_adapt(part):
            return ""
        found = [f"nothing was saved of {name}" for name in live if name not in value]
        found += [f"nothing is called {name} here" for name in value if name not in live]
        found += [
            f"{name} had the shape {list(value[name].shape)}, here it has {list(tensor.shape)}"
            for name, tensor in live.items()
            if _is_of_other_shape(tensor, value.get(name))
        ]
        return "; ".join(found[:_MAX_TOLD] + ["…"] * (len(found) > _MAX_TOLD))
    if isinstance(value.get("param_groups"), list):
        here, there = ([len(g["params"]) for g in x["param_groups"]] for x in (live, value))
        if here != there:
            return f"it had groups of {there} parameters, here it has {here}"
    return ""


def _may_adapt(module: torch.nn.Module) -> bool:
    """Return whether parts change their shapes or names to what they load, as observers do."""
    plain = (torch.nn.Module, torch.nn.modules.batchnorm._NormBase)
    loaders = {kind._load_from_state_dict for kind in plain}
    return any(
        part._load_state_dict_pre_hooks or type(part)._load_from_state_dict not in loaders
        for part in module.modules()
    )


def _is_of_other_shape(live: Any, saved: Any) -> bool:
    if not (isinstance(live, torch.Tensor) and isinstance(saved, torch.Tensor)):
        return False
    return live.shape != saved.shape and (live.ndim, saved.ndim) != (0, 1)  # torch unpacks it
