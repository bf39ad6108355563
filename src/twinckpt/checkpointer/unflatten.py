"""From the JSON text of a state, and its tensors by name, back to a state dictionary."""

import base64
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch

from twinckpt.checkpointer.tree import FLOAT, KIND, dtype_named
from twinckpt.errors import UnsupportedStateError


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
        match node.get(KIND):
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
                is_array = node[KIND] == "ndarray"
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
