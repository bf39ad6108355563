"""From a state dictionary to its tensors by name, and the JSON text that refers to them.

What is neither a tensor nor a plain value is refused by name, because it could only be carried by
pickling it.
"""

import base64
import json
import random
from collections import Counter, OrderedDict, deque
from collections.abc import Mapping
from datetime import date, time
from enum import Enum
from numbers import Number
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from torch.distributed.tensor import DTensor

from twinckpt.checkpointer.placing import describe
from twinckpt.checkpointer.tree import (
    FLOAT,
    KIND,
    FlatState,
    Kind,
    is_dense,
    is_plain_key,
    local_tensor,
    stands_for_itself,
)
from twinckpt.errors import UnsupportedStateError

# Deeper states could be saved, but perhaps not restored from a deeper call stack: each level takes
# three of Python's thousand nested calls.
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
    except Exception as error:  # such as Python's, for a key of 5000 digits
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
                return {KIND: "str", "utf8": value.encode(errors="surrogatepass").hex()}
            case int():
                # JSON readers limit the digits of decimal numbers, not of hexadecimal text.
                return value if value.bit_length() <= 64 else {KIND: "int", "hex": hex(value)}
            case float():
                # Text would lose the sign and the payload of a NaN.
                if value - value == 0:
                    return value
                return {KIND: "float", "bits": FLOAT.pack(value).hex()}
            case complex():
                return {
                    KIND: "complex",
                    "parts": [self.visit(value.real, path), self.visit(value.imag, path)],
                }
            case bytes():
                return {KIND: "bytes", "base64": base64.b64encode(value).decode()}
            case torch.dtype():
                return {KIND: "dtype", "name": str(value).removeprefix("torch.")}
            case torch.device():
                return {KIND: "device", "name": str(value)}
            case Mapping():
                return self._mapping(value, path)
            case list():
                return self._items(value, path)
            case torch.Size():
                return {KIND: "size", "items": list(value)}
            case tuple() if type(value) is tuple:
                return {KIND: "tuple", "items": self._items(value, path)}
            case set() | frozenset():
                kind = "set" if isinstance(value, set) else "frozenset"
                return {KIND: kind, "items": self._items(value, path)}
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
            KIND: kind,
            "items": [[self._key(key, path), item] for key, item in items.items()],
        }

    def _key(self, key: Any, path: str) -> Any:
        if isinstance(key, torch.Tensor):
            raise UnsupportedStateError(f"a key of {path} is a tensor; use a name or a number")
        return self.visit(key, f"the key {key} of {path}")  # a NumPy key needs a tensor's name

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
        # The order of axes in memory is kept: a sum in another order is rounded differently.
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
            KIND: "ndarray" if is_array else "npscalar",
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
        node: dict[str, Any] = {KIND: "tensor", "tensor": self._store(local, path, value)}
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
        # Each question to a tensor costs a tenth of a microsecond, so it is asked only once.
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
