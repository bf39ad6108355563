"""State as a tree: tensors apart, everything else as JSON.

`flatten` walks a state dictionary and separates the tensors (which go to the slot's data)
from the plain values (which go to its header); `unflatten` puts both together again. Here is
what both agree on.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import DTensor

# A JSON object stands for itself only if its keys are strings and not this one.
KIND = "$"
FLOAT = struct.Struct("<d")
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")


class Kind(NamedTuple):
    """What must be known of a tensor to lay it out and to copy it, apart from its bytes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    device: torch.device
    lies_in_order: bool  # as `moving.lies_in_order` says


@dataclass(slots=True)
class FlatState:
    """Tensors by name, and the JSON text that refers to them.

    `tensors` are the live ones (of a DTensor the local shard), `kinds` what they are,
    `originals` the same as they occur in the state; a tensor that occurs twice, such as a tied
    weight, is listed once, and `places` says by which name memory is known.
    """

    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    kinds: dict[str, Kind] = field(default_factory=dict)
    originals: dict[str, torch.Tensor] = field(default_factory=dict)
    places: dict[tuple[Any, ...], str] = field(default_factory=dict)
    text: str = "null"


def stands_for_itself(text: str) -> bool:
    """Return whether JSON keeps a text: it reads two surrogates as the one sign they stand for."""
    return text.isascii() or _PAIR.search(text) is None


def is_plain_key(key: Any) -> bool:
    """Return whether a dictionary's key can be that of a JSON object."""
    return type(key) is str and key != KIND and stands_for_itself(key)


def local_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Return the part of a tensor that this rank holds; for callers under `torch.no_grad`."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def is_dense(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is plain memory with a shape and strides."""
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_nested


def dtype_named(name: str) -> torch.dtype:
    """Return the type of tensors that torch calls so; raises ValueError if that is none."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no type of tensors")
    return found
