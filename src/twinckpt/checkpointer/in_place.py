"""Restoring in place: each saved tensor has a live counterpart that is filled, or is made anew."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor, Replicate

from twinckpt.checkpointer import moving, optimizers
from twinckpt.checkpointer.live_memory import LiveMemory
from twinckpt.checkpointer.parts import is_stateful
from twinckpt.checkpointer.placing import Placed, lies_as_saved, saved_places
from twinckpt.checkpointer.reading import SavedTensors
from twinckpt.checkpointer.tree import is_dense, local_tensor
from twinckpt.errors import RestoreError


def precedence(part: Any) -> int:
    """Return a part's turn, lowest first: what shares memory with an earlier part makes way."""
    kinds = torch.nn.Module, torch.optim.Optimizer, object
    return next(turn for turn, kind in enumerate(kinds) if isinstance(part, kind))


@dataclass
class Made:
    """New tensors and arrays of all parts, so that they share what they shared.

    One memory may occur as a parameter, and detached from it. If it is `filled` in one place and
    made in another, both have the live memory in the end. `of_torch` and `live` are the ids of
    tensors that were filled: those of modules and optimizers, and all of them.
    """

    tensors: dict[tuple[Any, ...], torch.Tensor] = field(default_factory=dict)
    memory: dict[str, torch.Tensor] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    filled: dict[str, torch.Tensor] = field(default_factory=dict)
    of_torch: set[int] = field(default_factory=set)
    live: set[int] = field(default_factory=set)

    def join(self) -> None:
        """Let what was made share the memory of what was filled, once no GPU fills either."""
        for (name, *_), tensor in self.tensors.items():
            if name in self.filled and not isinstance(tensor, DTensor):
                tensor.data = self.filled[name]


class InPlace:
    """Gives each saved tensor its live counterpart, filled; or a new one.

    Modules come first, then optimizers; whatever else shares their memory, but was saved as another
    tensor, gets memory of its own.
    """

    def __init__(
        self,
        name: str,
        part: Any,
        saved: SavedTensors,
        memory: LiveMemory,
        made: Made,
        placed: Placed,
    ) -> None:
        self._part = part
        self._name = name
        self._saved = saved
        self._live = memory
        self._made = made
        self._placed = placed
        self._is_of_torch = isinstance(part, torch.nn.Module | torch.optim.Optimizer)
        self._is_module = isinstance(part, torch.nn.Module)
        self._may_reuse = self._is_of_torch or not is_stateful(part)
        self._filled: set[tuple[str, int]] = set()

    def tensor(self, node: dict[str, Any], live: Any) -> torch.Tensor:
        """Return the tensor of a node of the saved tree: what is `live` there, if it fits."""
        name = node["tensor"]
        if node["$"] != "tensor":
            return self._saved.tensor(name)  # it is copied into something else at once
        if (
            self._may_reuse
            and isinstance(live, torch.Tensor)
            and not torch.nn.parameter.is_lazy(live)
        ):
            target = local_tensor(live)
            if target.is_meta:
                raise RestoreError(
                    f"{name} is to be restored into the meta device, which has no data; "
                    "materialize the module first (module.to_empty(device=...))"
                )
            fits = (target.dtype, target.shape) == self._saved.kind(name)
            fits = fits and lies_as_saved(live, node)
            is_plain = is_dense(target) and moving.has_own_memory(target)
            # Whether a module's parameter is trained is the script's to say.
            is_trained = _requires_grad(node, live.requires_grad)
            is_apart = id(live) in self._made.of_torch and is_trained != live.requires_grad
            may_be_live = self._is_of_torch or not is_apart
            if fits and is_plain and may_be_live and self._live.take(target, name, self._is_module):
                if (name, id(live)) not in self._filled:
                    self._saved.copy_into(target, name)
                    self._filled.add((name, id(live)))
                    self._made.filled.setdefault(name, target)
                self._made.live.add(id(live))
                if self._is_of_torch:
                    self._made.of_torch.add(id(live))
                elif live.is_leaf:  # modules and optimizers set it by themselves
                    live.requires_grad_(is_trained)
                return live
            if fits and self._is_module and is_dense(target) and live is target:
                # Expanded: nothing can be written to it, not by `load_state_dict` either.
                live.data = self._copied(node, name, target.device)
                return live
        kind = name, node.get("parameter"), node.get("requires_grad")
        if kind not in self._made.tensors:
            self._made.tensors[kind] = self._make(node, name, live)
        return self._made.tensors[kind]

    def array(self, name: str, made: np.ndarray, live: Any) -> np.ndarray:
        """Return the live NumPy array, filled, if it fits: others may hold it by a variable."""
        if (
            self._is_of_torch
            or not self._may_reuse
            or type(live) is not np.ndarray
            or (live.dtype, live.shape) != (made.dtype, made.shape)
            or not live.flags.writeable
            or not self._live.take_array(live, name)
        ):
            return self._made.arrays.setdefault(name, made)
        live[...] = made
        self._made.arrays.setdefault(name, live)
        return live

    def _make(self, node: dict[str, Any], name: str, live: Any) -> torch.Tensor:
        """Return a new tensor; one of an optimizer's state is placed like its parameter."""
        owner = optimizers.owner(name, self._name, self._part)
        placed = self._make_placed(node, name, live, owner) if "placements" in node else None
        if placed is None and name not in self._made.memory:
            self._made.memory[name] = self._copied(node, name, self._device_of(name, owner))
        made = self._made.memory[name].detach() if placed is None else placed
        if "parameter" in node:
            return torch.nn.Parameter(made, node["parameter"])
        return made.requires_grad_(_requires_grad(node, False))

    def _make_placed(
        self, node: dict[str, Any], name: str, live: Any, owner: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return a new DTensor like the live one, its parameter or another; None without a mesh."""
        is_whole = not saved_places(node)
        for like in self._models(node, live, owner):
            if isinstance(like, DTensor) and lies_as_saved(like, node):
                placements, shape, stride = like.placements, like.shape, like.stride()
            elif isinstance(like, DTensor) and like is owner and is_whole:
                placements = (Replicate(),) * like.device_mesh.ndim
                shape, stride = None, None
            else:
                continue
            return DTensor.from_local(
                self._copied(node, name, local_tensor(like).device),
                like.device_mesh,
                placements,
                run_check=False,
                shape=shape,
                stride=stride,
            )
        if is_whole:
            return None
        raise RestoreError(
            f"{name} is a DTensor, placed {node['placements']} on a mesh of {node['mesh']} ranks, "
            "and has no live counterpart that is placed so; create it before restore()"
        )

    def _models(self, node: dict[str, Any], live: Any, owner: torch.Tensor | None) -> Iterator[Any]:
        """Yield what a new DTensor may be placed like; the whole state is searched last."""
        yield live
        yield owner
        yield self._placed.like(node)

    def _device_of(self, name: str, owner: torch.Tensor | None) -> torch.device:
        """Return a new tensor's device: CPU as saved, else its parameter's, or the current GPU."""
        if self._saved.device_type(name) == "cpu" or not torch.cuda.is_available():
            return torch.device("cpu")
        if owner is not None:
            return owner.device
        return torch.device("cuda", torch.cuda.current_device())

    def _copied(self, node: dict[str, Any], name: str, device: torch.device) -> torch.Tensor:
        """Return a copy with the saved strides: fused optimizers need those of the parameter."""
        dtype, shape = self._saved.kind(name)
        if "stride" in node:
            made = torch.empty_strided(shape, node["stride"], dtype=dtype, device=device)
        else:
            made = torch.empty(shape, dtype=dtype, device=device)
        self._saved.copy_into(made, name)
        return made


def _requires_grad(node: dict[str, Any], otherwise: bool) -> bool:
    """Return whether a tensor was trained; `otherwise` if nobody knows, as for an imported one."""
    known = node.get("parameter", node.get("requires_grad", False))
    return otherwise if known is None else bool(known)
