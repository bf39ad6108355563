"""How a sharded tensor lies on its ranks: what was saved is compared with what is live."""

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
