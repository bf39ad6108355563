"""A drained step exists once all its shards are durable, and opens with plain safetensors."""

import pytest
import torch
from safetensors.torch import load_file

from twinckpt.checkpointer.layout import Layout, metadata_of
from twinckpt.checkpointer.tree import flatten
from twinckpt.errors import DamagedCopyError
from twinckpt.memory import drained
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal


@pytest.fixture
def entry():
    """One rank's sealed shard, as a training process stages it."""
    flat, _ = flatten({"weight": torch.arange(6.0).view(2, 3), "step": 7})
    layout = Layout(flat)
    metadata = metadata_of(flat, layout, step=7)
    store = InMemoryCheckpoint()
    store.reserve(0, layout.size_bytes)
    slot = store.slot(0, store.begin(0, 1))
    header = layout.header(metadata)
    slot.buffer[: len(header)] = header
    region = layout.regions["weight"]
    target = torch.frombuffer(slot.buffer[region.start : region.end], dtype=torch.float32)
    target.copy_(flat.tensors["weight"].reshape(-1))
    data = slot.buffer[: layout.size_bytes]
    return store.seal(Seal.of(data, rank=0, ticket=1, step=7, home=0, world_size=2))


def test_a_step_without_all_shards_does_not_exist(tmp_path, entry):
    """The manifest comes last."""
    drained.write_shard(tmp_path, entry)
    assert not drained.finish_step(tmp_path, step=7, ticket=1, world_size=2)
    assert drained.drained_steps(tmp_path) == ()


def test_a_complete_step_is_found_and_intact(tmp_path, entry):
    """With the manifest it exists; the bytes match their seal."""
    drained.write_shard(tmp_path, entry)
    assert drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    assert drained.drained_steps(tmp_path) == (7,)
    seal, data = drained.load_drained(str(tmp_path), 7, 0)
    assert seal == entry.seal
    assert data == entry.data


def test_anyone_can_open_a_shard_with_safetensors(tmp_path, entry):
    """Byte for byte the format, without this library."""
    drained.write_shard(tmp_path, entry)
    loaded = load_file(drained.shard_path(tmp_path, 7, 0))
    assert torch.equal(loaded["weight"], torch.arange(6.0).view(2, 3))


def test_damage_on_disk_is_found(tmp_path, entry):
    """One flipped bit in a file."""
    drained.write_shard(tmp_path, entry)
    path = drained.shard_path(tmp_path, 7, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCopyError, match="does not match"):
        drained.load_drained(str(tmp_path), 7, 0)


def test_old_steps_are_deleted(tmp_path, entry):
    """The newest K stay."""
    for step in (1, 2, 3):
        folder = drained.step_directory(tmp_path, step)
        folder.mkdir()
        (folder / "manifest.json").write_text("{}")
    drained.keep_newest(tmp_path, keep=2)
    assert drained.drained_steps(tmp_path) == (2, 3)


def test_the_newest_ticket_is_known_before_its_step_is_complete(tmp_path, entry):
    """A new root must not issue it again, or shards of two checkpoints could mix."""
    assert drained.newest_ticket(tmp_path) == 0
    drained.write_shard(tmp_path, entry)
    assert drained.newest_ticket(tmp_path) == 1
