"""How a sharded tensor lies on its ranks: what was saved is compared with what is live."""

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch.distributed.tensor import DTensor

_REPLICATE = "R"
Places = list[tuple[int, str]]


def saved_places(node: dict[str, Any]) -> Places:
    """Return over how many ranks a saved tensor lay, and how; empty if each had the whole."""
    return _places(node["mesh"], node["placements"]) if "placements" in node else []


def lies_as_saved(tensor: torch.Tensor, node: dict[str, Any]) -> bool:
    """Return whether this rank's part of a live tensor is the part that it saved."""
    shape = list(tensor.shape)
    live = saved_places(describe(tensor)) if isinstance(tensor, DTensor) else []
    return live == saved_places(node) and node.get("global_shape", shape) == shape


def describe(tensor: DTensor) -> dict[str, Any]:
    """Return what a node of the saved tree says of a DTensor, beside what all tensors have."""
    return {
        "global_shape": list(tensor.shape),
        "placements": [str(placement) for placement in tensor.placements],
        "mesh": list(tensor.device_mesh.shape),
    }


def _places(mesh: Any, placements: Any) -> Places:
    found = [
        (n, how.replace("Shard(dim=", "S(").replace("Replicate()", _REPLICATE))
        for n, how in zip(mesh, placements, strict=True)
        if n > 1
    ]
    return [] if all(how == _REPLICATE for _, how in found) else found


class Placed:
    """The DTensors of a live state: what has no counterpart is placed as one of the same form.

    So the state of an optimizer, which an object of the loop's own gives, is placed as parameters.
    """

    def __init__(self, live: Any) -> None:
        self._live = live

    def like(self, node: dict[str, Any]) -> DTensor | None:
        """Return a live DTensor that lies as a saved one; None if there is none."""
        return self._by_form.get(_form(node))

    @cached_property
    def _by_form(self) -> dict[str, DTensor]:
        """Live DTensors by form; but none of a mesh shape that two meshes have: which was it?"""
        tensors = list(_dtensors(self._live))
        meshes = {tuple(t.device_mesh.shape): t.device_mesh for t in tensors}
        unsure = {
            tuple(t.device_mesh.shape)
            for t in tensors
            if t.device_mesh != meshes[tuple(t.device_mesh.shape)]
        }
        return {_form(describe(t)): t for t in tensors if tuple(t.device_mesh.shape) not in unsure}


def _form(described: dict[str, Any]) -> str:
    return str([described.get(key) for key in ("global_shape", "placements", "mesh")])


def _dtensors(value: Any) -> Iterator[DTensor]:
    if isinstance(value, DTensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _dtensors(item)
