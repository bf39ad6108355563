"""The bytes of a slot: a safetensors file, laid out once and then only overwritten.

The header has room to spare and is padded with spaces, as the format allows, so that plain
values may grow without moving a tensor. Tensors lie back to back, largest element first, so
that each is aligned. Types that the format has no name for are stored as bytes; the shape
and type of every tensor are in the metadata as well.
"""

import json
import math
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from twinckpt.checkpointer.tree import FlatState, Kind, dtype_named
from twinckpt.errors import DamagedCopyError

_ALIGNMENT_BYTES = 64
_SPARE_HEADER_BYTES = 4096
_LENGTH = struct.Struct("<Q")

_FORMAT_NAMES = {
    torch.bool: "BOOL",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.uint16: "U16",
    torch.int16: "I16",
    torch.uint32: "U32",
    torch.int32: "I32",
    torch.uint64: "U64",
    torch.int64: "I64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
}


class Region(NamedTuple):
    """Where one tensor's bytes lie in the slot, and what they are."""

    start: int
    end: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    def cut(self, size_bytes: int) -> Iterator[tuple[int, int, int]]:
        """Yield its parts in a slot that is cut every `size_bytes`: index of piece, start, end."""
        position = self.start
        while position < self.end:
            index = position // size_bytes
            border = min(self.end, (index + 1) * size_bytes)
            yield index, position, border
            position = border


class Layout:
    """Regions of a set of tensors; valid as long as `kinds` stays the same."""

    def __init__(self, flat: FlatState) -> None:
        tensors = flat.tensors
        self.kinds = flat.kinds
        self.on_device = frozenset(
            n for n, kind in flat.kinds.items() if kind.device.type == "cuda"
        )
        ordered = sorted(tensors.items(), key=lambda item: -item[1].element_size())
        entries: dict[str, dict[str, Any]] = {}
        offset = 0
        spans: list[tuple[str, int, int]] = []
        for name, tensor in ordered:
            size = tensor.numel() * tensor.element_size()
            entries[name] = _entry(tensor, offset, offset + size)
            spans.append((name, offset, offset + size))
            offset += size
        self.kinds_text = json.dumps(_described(flat.kinds), separators=(",", ":"))
        self._entries = json.dumps(entries, separators=(",", ":"))[1:]
        metadata = json.dumps(metadata_of(flat, self))
        header = _LENGTH.size + len(self._entries) + len(metadata) + len(metadata) // 4
        header += _SPARE_HEADER_BYTES
        self.data_start = -(-header // _ALIGNMENT_BYTES) * _ALIGNMENT_BYTES
        self.size_bytes = self.data_start + offset
        self.regions = {
            name: Region(
                self.data_start + start,
                self.data_start + end,
                tensors[name].dtype,
                tuple(tensors[name].shape),
            )
            for name, start, end in spans
        }

    def header(self, metadata: str) -> bytes | None:
        """Return the slot's first `data_start` bytes, or None if the metadata outgrew them."""
        first = json.dumps({"__metadata__": {"format": "pt", "twinckpt": metadata}})[:-1]
        separator = "," if len(self._entries) > 1 else ""
        text = (first + separator + self._entries).encode()
        room = self.data_start - _LENGTH.size
        if len(text) > room:
            return None
        return _LENGTH.pack(room) + text.ljust(room)


def _described(kinds: dict[str, Kind]) -> dict[str, list[Any]]:
    """Return the true type, shape and device of each tensor."""
    return {
        name: [str(kind.dtype).removeprefix("torch."), list(kind.shape), kind.device.type]
        for name, kind in kinds.items()
    }


def metadata_of(flat: FlatState, layout: Layout, **facts: Any) -> str:
    """Return the slot's metadata: `facts`, the tensors' true types, and the state's JSON."""
    first = json.dumps(facts)[:-1] + (", " if facts else "")
    return f'{first}"tensors":{layout.kinds_text},"state":{flat.text}}}'


def header_bytes(buffer: memoryview) -> int:
    """Return how many bytes of a slot its header takes; all of them if it is damaged."""
    if len(buffer) < _LENGTH.size:
        return len(buffer)
    (length,) = _LENGTH.unpack(buffer[: _LENGTH.size])
    return min(_LENGTH.size + int(length), len(buffer))


def parse(buffer: memoryview) -> tuple[dict[str, Any], dict[str, Region]]:
    """Return a slot's metadata, and where its tensors lie.

    Raises DamagedCopyError if the bytes are no such file.
    """
    try:
        start = header_bytes(buffer)
        header = json.loads(bytes(buffer[_LENGTH.size : start]))
        metadata = json.loads(header["__metadata__"]["twinckpt"])
        if not isinstance(metadata["state"], dict) or "$" in metadata["state"]:
            raise ValueError("its state is no mapping of names")
        regions = {}
        for name, (dtype, shape, _) in metadata["tensors"].items():
            first, last = header[name]["data_offsets"]
            numbers = first, last, *shape
            if not all(isinstance(number, int) and number >= 0 for number in numbers):
                raise ValueError(f"{name} has impossible offsets, or an impossible shape")
            region = Region(start + first, start + last, dtype_named(dtype), tuple(shape))
            size_bytes = math.prod(shape) * region.dtype.itemsize
            if not start <= region.start <= region.start + size_bytes == region.end <= len(buffer):
                raise ValueError(f"{name} has impossible offsets")
            regions[name] = region
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedCopyError(f"not a checkpoint of twinckpt: {error}") from error
    return metadata, regions


def view(buffer: memoryview, region: Region) -> torch.Tensor:
    """Return the tensor at a region of a slot, without a copy."""
    if region.start == region.end:
        return torch.empty(region.shape, dtype=region.dtype, device="cpu")
    raw = torch.frombuffer(buffer[region.start : region.end], dtype=torch.uint8)
    return raw.view(region.dtype).view(region.shape)


def _entry(tensor: torch.Tensor, start: int, end: int) -> dict[str, Any]:
    name = _FORMAT_NAMES.get(tensor.dtype)
    shape = list(tensor.shape) if name else [end - start]
    return {"dtype": name or "U8", "shape": shape, "data_offsets": [start, end]}
