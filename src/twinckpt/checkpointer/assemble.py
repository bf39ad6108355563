"""A drained checkpoint as one state: all ranks' shards read, sharded tensors put together.

The meshes of sharded tensors must cover all ranks in order, as those of FSDP, HSDP and tensor
parallelism over the whole job do. A value that is not sharded is taken from rank 0; where the
ranks differ (random states, positions in the data) the report says so.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor, distribute_tensor

from twinckpt.checkpointer import layout, moving
from twinckpt.checkpointer.capture import Capture
from twinckpt.checkpointer.placing import describe
from twinckpt.checkpointer.reading import SavedTensors
from twinckpt.checkpointer.unflatten import unflatten
from twinckpt.errors import DamagedCopyError, RestoreError, TwinckptError, UnsupportedStateError
from twinckpt.memory.drained import check_length, load_drained, read_manifest
from twinckpt.memory.seal import Seal

_SHARD = re.compile(r"(?:Shard\(dim=|S\()(\d+)\)")
_REPLICATE = ("R", "Replicate()")


@dataclass(frozen=True, slots=True)
class Shard:
    """One rank's part: its seal, its metadata, and where its tensors lie."""

    seal: Seal
    metadata: dict[str, Any]
    regions: dict[str, layout.Region]
    buffer: memoryview

    def tensor(self, name: str) -> torch.Tensor:
        """Return a tensor of this rank, without a copy."""
        if name not in self.regions:
            raise UnsupportedStateError(f"{name} is not on every rank: it cannot be put together")
        return layout.view(self.buffer, self.regions[name])


@dataclass(frozen=True, slots=True)
class FullState:
    """The state of the whole job; where ranks differ, in the parts `differing`, it is rank 0's."""

    step: int
    world_size: int
    state: dict[str, Any]
    differing: tuple[str, ...]


def read_shard(directory: Path, step: int, rank: int) -> Shard:
    """Read and verify one rank's shard; raises DamagedCopyError if it is not intact."""
    seal, buffer = load_drained(directory, step, rank)
    metadata, regions = layout.parse(buffer)
    return Shard(seal, metadata, regions, buffer)


def full_state(directory: Path, step: int) -> FullState:
    """Return a drained step with all tensors whole.

    Raises DamagedCopyError for damage, and for files that go on after the shard;
    UnsupportedStateError for a sharding that it cannot undo.
    """
    shards = _all_shards(directory, step)
    for shard in shards:
        check_length(directory, shard.seal)
    made: dict[tuple[str, bool], torch.Tensor] = {}  # tied weights are one tensor

    def whole(node: dict[str, Any], _: Any) -> torch.Tensor:
        key = node["tensor"], _is_sharded(node)
        if key not in made:
            made[key] = _whole(node, shards)
        return made[key]

    try:
        state = unflatten(shards[0].metadata["state"], whole)
        differing = tuple(name for name in state if _differs(name, shards))
    except TwinckptError:
        raise
    except Exception as error:  # torch and NumPy raise anything, given anything
        reason = str(error).partition("\n")[0]
        what = f"step {step} in {directory} cannot be put together"
        raise DamagedCopyError(f"{what}: {type(error).__name__}: {reason}") from error
    return FullState(step, len(shards), state, differing)


def resharded(
    directory: Path, step: int, rank: int, counterpart: Callable[[str], torch.Tensor | None]
) -> tuple[dict[str, Any], SavedTensors]:
    """Return a drained step's state for a rank of a job of another size, and its tensors.

    Args:
        counterpart: returns the live tensor of a name; a sharded one gives the placement.

    What is not sharded comes from rank `rank` modulo the number of ranks that wrote it. Raises
    RestoreError for a sharded tensor without counterpart, and as `full_state` does.
    """
    shards = _all_shards(directory, step)
    own = shards[rank % len(shards)]
    tensors = {}
    for node in _nodes(own.metadata["state"]):
        name = node["tensor"]
        live = counterpart(name)
        is_sharded = _is_sharded(node)
        whole = _whole(node, shards) if is_sharded else own.tensor(name)
        if is_sharded and live is None:
            raise RestoreError(f"{name} is sharded and has no live counterpart to be placed like")
        if isinstance(live, DTensor) and whole.shape == live.shape:
            node |= describe(live)  # now it is sharded, if it was not before
            placed = distribute_tensor(whole, live.device_mesh, live.placements, src_data_rank=None)
            whole = placed.to_local().contiguous()
            node.pop("stride", None)  # that of another shape
        elif is_sharded and not isinstance(live, DTensor):
            for key in ("global_shape", "placements", "mesh"):  # now it is not
                node.pop(key)
        tensors[name] = whole
    return own.metadata["state"], SavedTensors(tensors)


@torch.no_grad()
def one_shard(state: dict[str, Any], step: int, ticket: int) -> tuple[Seal, memoryview]:
    """Return a whole state as the one shard of a job of one rank: its seal and its bytes.

    Raises UnsupportedStateError for what cannot be carried, by name.
    """
    flat = Capture()(state)
    tree = json.loads(flat.text)
    for node in _nodes(tree):
        if "parameter" not in node:
            node.setdefault("requires_grad", None)  # nobody knows: the live one decides
    flat.text = json.dumps(tree)
    target = layout.Layout(flat)
    header = target.header(layout.metadata_of(flat, target, step=step))
    assert header is not None, "there is room for the metadata that the layout was made for"
    data = memoryview(bytearray(target.size_bytes))
    data[: len(header)] = header
    for name, tensor in flat.tensors.items():
        if tensor.numel():
            moving.copy(layout.view(data, target.regions[name]), tensor)
    identity = {"rank": 0, "ticket": ticket, "step": step, "home": 0, "world_size": 1}
    return Seal.of(data, **identity), data


def _all_shards(directory: Path, step: int) -> list[Shard]:
    manifest = read_manifest(directory, step)
    if manifest is None:
        raise DamagedCopyError(f"step {step} in {directory} is not complete")
    return [read_shard(directory, step, rank) for rank in range(manifest.world_size)]


def _whole(node: dict[str, Any], shards: Sequence[Shard]) -> torch.Tensor:
    name = node["tensor"]
    if not _is_sharded(node):
        return shards[0].tensor(name)
    mesh = node["mesh"]
    if math.prod(mesh) != len(shards):
        raise UnsupportedStateError(
            f"{name} is sharded over a mesh of {math.prod(mesh)} of {len(shards)} ranks: only "
            "meshes of all ranks can be put together"
        )
    locals_ = [shard.tensor(name) for shard in shards]
    whole = _combine(name, locals_, mesh, node["placements"])
    if list(whole.shape) != node["global_shape"]:
        raise UnsupportedStateError(
            f"{name}: its parts make {list(whole.shape)}, not {node['global_shape']}"
        )
    return whole


def _combine(
    name: str, parts: Sequence[torch.Tensor], mesh: Sequence[int], placements: Sequence[str]
) -> torch.Tensor:
    """Undo the placements, those of the innermost mesh dimension first."""
    if not mesh:
        return parts[0]
    inner = math.prod(mesh[1:])
    rows = [
        _combine(name, parts[row * inner : (row + 1) * inner], mesh[1:], placements[1:])
        for row in range(mesh[0])
    ]
    if placements[0] in _REPLICATE:
        return rows[0]
    found = _SHARD.fullmatch(placements[0])
    if found is None:
        raise UnsupportedStateError(f"{name} is placed {placements[0]}: only shards and replicas")
    return torch.cat(rows, dim=int(found[1]))


def _differs(part: str, shards: Sequence[Shard]) -> bool:
    """Return whether ranks differ in those values of a part that are not sharded."""
    first = shards[0]
    tree = first.metadata["state"][part]
    if any(shard.metadata["state"].get(part) != tree for shard in shards[1:]):
        return True
    names = {node["tensor"] for node in _nodes(tree) if not _is_sharded(node)}
    return any(_bytes(first, name) != _bytes(shard, name) for shard in shards[1:] for name in names)


def _nodes(tree: Any) -> Iterator[dict[str, Any]]:
    """Yield the references to tensors in a state's JSON."""
    if isinstance(tree, dict):
        if "$" in tree and isinstance(tree.get("tensor"), str):
            yield tree
        else:
            tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from _nodes(item)


def _is_sharded(node: dict[str, Any]) -> bool:
    return "placements" in node


def _bytes(shard: Shard, name: str) -> memoryview:
    region = shard.regions[name]
    return shard.buffer[region.start : region.end]
