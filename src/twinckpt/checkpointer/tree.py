"""State as a tree: tensors apart, everything else as JSON.

`flatten` walks a state dictionary and separates the tensors (which go to the slot's data)
from the plain values (which go to its header); `unflatten` puts both together again. What is
neither is refused by name, because it could only be carried by pickling it.
"""

import base64
import json
import random
import re
import struct
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import date, time
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from twinckpt.checkpointer.placing import describe
from twinckpt.errors import UnsupportedStateError

# A JSON object stands for itself only if its keys are strings and not this one.
_KIND = "$"
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
FLOAT = struct.Struct("<d")

# Deeper ones could be saved, but not restored where more functions have called each other: of
# Python's thousand calls each level takes three.
_MAX_DEPTH = 200

# What is of a type derived from one of these would come back as the plain one.
_PLAIN = (str, bytes, int, float, complex, list, set, frozenset)
_MAPPINGS = {dict: "dict", OrderedDict: "ordered", Counter: "counter"}
_INSTEAD = {
    deque: "store a list of its items",
    random.Random: "store its getstate()",
    np.random.Generator: "store its bit_generator.state",
    np.random.RandomState: "store its get_state()",
    torch.Generator: "store its get_state()",
    torch.nn.Module | torch.optim.Optimizer: "store its state_dict()",
    bytearray | memoryview: "store its bytes",
    tuple: "store a plain tuple of its items",
    range: "store a list of its items",
    Enum: "store its value",
    PurePath | date | time | Number | np.dtype: "store it as text",
    object: "give it state_dict() and load_state_dict() that return tensors and plain values",
}


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
    """Return whether JSON keeps a text: of two surrogates it makes the one sign they stand for."""
    return text.isascii() or _PAIR.search(text) is None


def is_plain_key(key: Any) -> bool:
    """Return whether a dictionary's key can be that of a JSON object."""
    return type(key) is str and key != _KIND and stands_for_itself(key)


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


@torch.no_grad()
def flatten(
    state: Any, name: str = "", known: FlatState | None = None
) -> tuple[FlatState, frozenset[str]]:
    """Separate `state` into tensors and JSON; raises UnsupportedStateError by name.

    Tensors that are `known` already are referred to, not listed again; their names are the
    second value returned.
    """
    flattener = _Flattener(known or FlatState())
    try:
        flattener.flat.text = json.dumps(flattener.visit(state, name), separators=(",", ":"))
    except RecursionError:
        raise UnsupportedStateError(
            f"{name or 'the state'} contains itself, or is nested deeper than {_MAX_DEPTH} levels; "
            "make it flatter"
        ) from None
    except UnsupportedStateError:
        raise
    except Exception as error:  # as Python's, of a key of 5000 digits
        raise UnsupportedStateError(
            f"{name or 'the state'} cannot be read: {type(error).__name__}: {error}"
        ) from error
    return flattener.flat, frozenset(flattener.borrowed)


class _Flattener:
    def __init__(self, known: FlatState) -> None:
        self.flat = FlatState()
        self.borrowed: set[str] = set()
        self._known = known
        self._depth = 0

    def visit(self, value: Any, path: str) -> Any:
        """Return the JSON of one value, and collect its tensors."""
        match value:
            case None | bool():
                return value
            case torch.Tensor():
                return self._tensor(value, path)
            case np.ndarray() | np.generic():
                return self._numpy(value, path)
            case _ if isinstance(value, _PLAIN) and type(value) not in _PLAIN:
                plain = next(kind.__name__ for kind in _PLAIN if isinstance(value, kind))
                raise UnsupportedStateError(
                    f"{path} is a {type(value).__qualname__}; store its plain value ({plain}) "
                    "instead"
                )
            case str():
                if stands_for_itself(value):
                    return value
                return {_KIND: "str", "utf8": value.encode(errors="surrogatepass").hex()}
            case int():
                # JSON readers limit the digits of decimal numbers, not of hexadecimal text.
                return value if value.bit_length() <= 64 else {_KIND: "int", "hex": hex(value)}
            case float():
                # Text would lose the sign and the payload of a NaN.
                if value - value == 0:
                    return value
                return {_KIND: "float", "bits": FLOAT.pack(value).hex()}
            case complex():
                return {
                    _KIND: "complex",
                    "parts": [self.visit(value.real, path), self.visit(value.imag, path)],
                }
            case bytes():
                return {_KIND: "bytes", "base64": base64.b64encode(value).decode()}
            case torch.dtype():
                return {_KIND: "dtype", "name": str(value).removeprefix("torch.")}
            case torch.device():
                return {_KIND: "device", "name": str(value)}
            case Mapping():
                return self._mapping(value, path)
            case list():
                return self._items(value, path)
            case torch.Size():
                return {_KIND: "size", "items": list(value)}
            case tuple() if type(value) is tuple:
                return {_KIND: "tuple", "items": self._items(value, path)}
            case set() | frozenset():
                kind = "set" if isinstance(value, set) else "frozenset"
                return {_KIND: kind, "items": self._items(value, path)}
        instead = next(what for kind, what in _INSTEAD.items() if isinstance(value, kind))
        raise UnsupportedStateError(
            f"{path or 'the state'} is a {type(value).__qualname__}, which could only be carried "
            f"by pickling it; {instead}, or leave it out"
        )

    def _items(self, values: Any, path: str) -> list[Any]:
        self._enter()
        items = [self.visit(item, f"{path}.{index}") for index, item in enumerate(values)]
        self._depth -= 1
        return items

    def _enter(self) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise RecursionError

    def _mapping(self, value: Mapping[Any, Any], path: str) -> Any:
        kind = _MAPPINGS.get(type(value))
        if kind is None:
            raise UnsupportedStateError(
                f"{path} is a {type(value).__qualname__}; convert it to a plain dict"
            )
        self._enter()
        items = {
            key: self.visit(item, f"{path}.{key}" if path else str(key))
            for key, item in value.items()
        }
        self._depth -= 1
        if kind == "dict" and all(map(is_plain_key, items)):
            return items
        return {
            _KIND: kind,
            "items": [[self._key(key, path), item] for key, item in items.items()],
        }

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, torch.Tensor):
            raise UnsupportedStateError(f"a key of {path} is a tensor; use a name or a number")
        return self.visit(key, f"the key {key} of {path}")  # a name of its own, if it is NumPy's

    def _numpy(self, value: Any, path: str) -> Any:
        if value.dtype.hasobject:
            raise UnsupportedStateError(
                f"{path} is a NumPy array of objects; convert it to numbers"
            )
        if isinstance(value, np.ndarray) and type(value) is not np.ndarray:
            raise UnsupportedStateError(
                f"{path} is a {type(value).__qualname__}; store plain arrays instead "
                "(numpy.asarray)"
            )
        if value.dtype.names is not None:
            raise UnsupportedStateError(
                f"{path} is a NumPy array of records; store an array for each of its fields"
            )
        dtype = value.dtype.str
        if np.dtype(dtype) != value.dtype:  # as `bfloat16` of ml_dtypes, which would come back raw
            raise UnsupportedStateError(
                f"{path} is of NumPy's type {value.dtype}, which another package defines; store a "
                "tensor instead, or a view of it as integers"
            )
        # What is summed in another order is rounded otherwise.
        axes = sorted(range(value.ndim), key=lambda axis: -abs(value.strides[axis]))
        is_array = isinstance(value, np.ndarray)
        key = (value.__array_interface__["data"][0], dtype, value.shape, value.strides)
        name = self._listed(key) if is_array and value.size else None
        if name is None:
            lying = value.transpose(axes) if is_array else value
            tensor = torch.from_numpy(np.frombuffer(lying.tobytes(), np.uint8).copy())
            name = self._store(tensor, path, tensor)
            if is_array:
                self.flat.places[key] = name
        node = {
            _KIND: "ndarray" if is_array else "npscalar",
            "tensor": name,
            "dtype": dtype,
            "shape": list(value.shape),
        }
        return node if axes == [*range(value.ndim)] else {**node, "axes": axes}

    def _tensor(self, value: torch.Tensor, path: str) -> Any:
        local = local_tensor(value)
        if torch.nn.parameter.is_lazy(local):
            raise UnsupportedStateError(
                f"{path} has no shape yet; run a batch through the module before the first save()"
            )
        if not is_dense(local):
            raise UnsupportedStateError(
                f"{path} is a sparse, nested or quantized tensor; store its dense parts instead"
            )
        if local.is_meta:
            raise UnsupportedStateError(
                f"{path} is on the meta device and has no data; materialize the module first "
                "(module.to_empty(device=...))"
            )
        if local.numel() and not local.data_ptr():
            raise UnsupportedStateError(
                f"{path} is a {type(local).__qualname__}, which has no memory of its own; store "
                "the tensors that it wraps instead"
            )
        node: dict[str, Any] = {_KIND: "tensor", "tensor": self._store(local, path, value)}
        if isinstance(value, DTensor):
            node |= describe(value)
        if (1 in local.shape or not local.is_contiguous()) and _is_permuted(local):
            node["stride"] = list(local.stride())
        if isinstance(value, torch.nn.Parameter):
            node["parameter"] = value.requires_grad
        elif value.requires_grad and value.is_leaf:
            node["requires_grad"] = True
        return node

    def _listed(self, key: tuple[Any, ...]) -> str | None:
        """Return the name by which memory is known already; None if it is not."""
        if key in self.flat.places:
            return self.flat.places[key]
        name = self._known.places.get(key)
        if name is not None:
            self.borrowed.add(name)
        return name

    def _store(self, tensor: torch.Tensor, path: str, original: torch.Tensor) -> str:
        # What is asked of a tensor costs a tenth of a microsecond each: it is asked once.
        device, dtype, shape = tensor.device, tensor.dtype, tensor.shape
        is_neg, is_conj = tensor.is_neg(), tensor.is_conj()
        key = (device, tensor.data_ptr(), is_neg, is_conj, dtype, shape, tensor.stride())
        listed = self._listed(key) if tensor.numel() else None
        if listed is not None:
            return listed
        # Names are read by others too, who refuse what is not Unicode.
        name = path.encode(errors="backslashreplace").decode()
        while name in self.flat.tensors or name in self._known.tensors or name == "__metadata__":
            name += "'"
        in_order = tensor.is_cpu and tensor.is_contiguous() and not is_neg and not is_conj
        self.flat.kinds[name] = Kind(dtype, shape, device, in_order)
        self.flat.places[key] = name
        self.flat.tensors[name] = tensor
        self.flat.originals[name] = original
        return name


def _is_permuted(tensor: torch.Tensor) -> bool:
    """Return whether a tensor fills its memory, in another order than that of its indices.

    Where a dimension has length 1 the strides alone tell, as those of a depthwise convolution.
    """
    in_order = torch.empty(tensor.shape, device="meta").stride()
    return in_order != tensor.stride() == torch.empty_like(tensor, device="meta").stride()


def unflatten(
    tree: Any,
    tensor: Callable[[dict[str, Any], Any], torch.Tensor],
    live: Any = None,
    array: Callable[[str, np.ndarray, Any], np.ndarray] = lambda name, made, live: made,
) -> Any:
    """Rebuild a state from its JSON.

    `tensor(node, counterpart)` gives the tensor of each reference; the counterpart is what a
    `live` state of the same form has in the same place, or None. `array(name, made, counterpart)`
    may give another NumPy array of the same contents.
    """

    def build(node: Any, live: Any) -> Any:
        if isinstance(node, list):
            return [build(item, _at(live, index)) for index, item in enumerate(node)]
        if not isinstance(node, dict):
            return node
        match node.get(_KIND):
            case None:
                return {key: build(item, _at(live, key)) for key, item in node.items()}
            case "tensor":
                return tensor(node, live)
            case "ndarray" | "npscalar":
                raw, dtype = bytearray(tensor(node, None).numpy().data), np.dtype(node["dtype"])
                if dtype.hasobject:
                    raise ValueError("an array of objects, whose bytes would be taken as addresses")
                shape = node["shape"]
                axes = node.get("axes", range(len(shape)))
                lying = np.ndarray([shape[axis] for axis in axes], dtype, raw)
                made = lying.transpose(np.argsort(axes))
                is_array = node[_KIND] == "ndarray"
                return array(node["tensor"], made, live) if is_array else _scalar(made)
            case "float":
                return FLOAT.unpack(bytes.fromhex(node["bits"]))[0]
            case "str":
                return bytes.fromhex(node["utf8"]).decode(errors="surrogatepass")
            case "int":
                return int(node["hex"], 16)
            case "complex":
                return complex(*(build(part, None) for part in node["parts"]))
            case "bytes":
                return base64.b64decode(node["base64"])
            case "dtype":
                return dtype_named(node["name"])
            case "device":
                return torch.device(node["name"])
            case "size":
                return torch.Size(node["items"])
            case "tuple":
                return tuple(build(node["items"], live))
            case "set":
                return set(build(node["items"], None))
            case "frozenset":
                return frozenset(build(node["items"], None))
            case "dict":
                return dict(pairs(node["items"], live))
            case "ordered":
                return OrderedDict(pairs(node["items"], live))
            case "counter":
                return Counter(dict(pairs(node["items"], live)))
            case kind:
                raise UnsupportedStateError(f"a checkpoint of a newer version: node {kind!r}")

    def pairs(items: list[Any], live: Any) -> Iterator[tuple[Any, Any]]:
        for key_node, item in items:
            key = build(key_node, None)
            yield key, build(item, _at(live, key))

    return build(tree, live)


def _scalar(made: np.ndarray) -> Any:
    """Return the one element of an array; NumPy cuts off the NULs that a text ends with."""
    value = made[()]
    if isinstance(value, np.str_):
        return np.str_(value.ljust(made.itemsize // 4, "\0"))
    if isinstance(value, np.bytes_):
        return np.bytes_(value.ljust(made.itemsize, b"\0"))
    return value


def _at(live: Any, key: Any) -> Any:
    """Return what a container of a live state has at a key or index; None without one."""
    if isinstance(live, dict):
        return live.get(key)
    if isinstance(live, list | tuple) and isinstance(key, int) and 0 <= key < len(live):
        return live[key]
    return None
