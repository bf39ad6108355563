"""A drained step exists once all its shards are durable, and opens with plain safetensors."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import product
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors.torch import load_file

from twinckpt import Checkpointer
from twinckpt.checkpointer.flatten import flatten
from twinckpt.checkpointer.layout import Layout, metadata_of
from twinckpt.cli import main
from twinckpt.core.copies import checkpoint_digest
from twinckpt.errors import ConfigurationError, DamagedCopyError
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
    return store.seal(Seal.of(data, rank=0, ticket=1, step=7, home=0, world_size=1))


def test_a_step_without_all_shards_does_not_exist(tmp_path, entry):
    """The manifest comes last."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    assert not drained.finish_step(tmp_path, step=7, ticket=1, world_size=2)
    assert drained.drained_steps(tmp_path) == ()


def test_a_complete_step_is_found_and_intact(tmp_path, entry):
    """With the manifest it exists; the bytes match their seal."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    assert drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    assert drained.drained_steps(tmp_path) == (7,)
    seal, data = drained.load_drained(tmp_path, 7, 0)
    assert seal == entry.seal
    assert data == entry.data


def test_a_step_is_incomplete_while_another_checkpoint_replaces_its_shards(tmp_path, entry):
    """The old manifest must not vouch for a mixture of old and new shards."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    newer = replace(entry.seal, ticket=2, world_size=2)
    drained.write_shard(tmp_path, newer, entry.data)
    assert drained.drained_steps(tmp_path) == ()


def test_shards_of_two_jobs_that_drain_to_one_directory_make_no_step(tmp_path, entry):
    """Their tickets may be the same; what is whole is said by the digest of all shards."""
    shards = [memoryview(bytes([number]) * 100) for number in range(3)]
    own, others, wanted = (
        Seal.of(shard, rank=rank, ticket=1, step=7, home=0, world_size=2)
        for shard, rank in zip(shards, (0, 1, 1), strict=True)
    )
    digest = checkpoint_digest([own.holding.digest, wanted.holding.digest])
    drained.write_shard(tmp_path, own, shards[0])
    drained.write_shard(tmp_path, others, shards[1])
    with pytest.raises(DamagedCopyError, match="another job drains to this directory too"):
        drained.finish_step(tmp_path, step=7, ticket=1, world_size=2, digest=digest)
    assert drained.drained_steps(tmp_path) == ()
    drained.write_shard(tmp_path, wanted, shards[2])
    assert drained.finish_step(tmp_path, step=7, ticket=1, world_size=2, digest=digest)
    drained.write_shard(tmp_path, others, shards[1])
    assert drained.drained_steps(tmp_path) == ()


def test_anyone_can_open_a_shard_with_safetensors(tmp_path, entry):
    """Byte for byte the format, without this library."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    loaded = load_file(drained.shard_path(tmp_path, 7, 0))
    assert torch.equal(loaded["weight"], torch.arange(6.0).view(2, 3))


def test_damage_on_disk_is_found(tmp_path, entry):
    """One flipped bit in a file."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    path = drained.shard_path(tmp_path, 7, 0)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedCopyError, match="does not match"):
        drained.load_drained(tmp_path, 7, 0)


def test_old_steps_are_deleted(tmp_path, entry):
    """The newest K stay."""
    for step in (1, 2, 3):
        folder = drained.step_directory(tmp_path, step)
        folder.mkdir()
        manifest = f'{{"step": {step}, "ticket": {step}, "world_size": 1}}'
        (folder / "manifest.json").write_text(manifest)
    drained.keep_newest(tmp_path, keep=2)
    assert drained.drained_steps(tmp_path) == (2, 3)


def test_what_a_failure_left_of_an_older_step_is_deleted(tmp_path, entry):
    """Half a step that no machine will ever complete; a newer one is still being drained."""
    for step in (6, 8):
        drained.step_directory(tmp_path, step).mkdir()
    drained.write_shard(tmp_path, entry.seal, entry.data)
    drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    drained.keep_newest(tmp_path, keep=2)
    kept = {path.name for path in tmp_path.iterdir()}
    assert kept == {drained.step_directory(tmp_path, step).name for step in (7, 8)}


def test_the_newest_ticket_is_known_before_its_step_is_complete(tmp_path, entry):
    """A new root must not issue it again, or shards of two checkpoints could mix."""
    assert drained.newest_ticket(tmp_path) == 0
    drained.write_shard(tmp_path, entry.seal, entry.data)
    assert drained.newest_ticket(tmp_path) == 1


def test_the_newest_ticket_is_found_by_one_seal_a_step(tmp_path, entry, monkeypatch):
    """Not by all of a thousand ranks: every machine asks shared storage whenever it connects."""
    for rank, step in product(range(3), (7, 8)):
        drained.write_shard(tmp_path, replace(entry.seal, rank=rank, step=step), entry.data)
    read = mock.Mock(wraps=Path.read_bytes)
    monkeypatch.setattr(Path, "read_bytes", lambda path: read(path))
    assert drained.newest_ticket(tmp_path) == 1
    assert read.call_count == 2


@pytest.fixture
def complete(tmp_path, entry):
    """A directory with one complete step of one rank."""
    drained.write_shard(tmp_path, entry.seal, entry.data)
    assert drained.finish_step(tmp_path, step=7, ticket=1, world_size=1)
    return tmp_path


def test_a_flipped_bit_anywhere_in_a_seal_is_found(complete):
    """A seal proves the shard only if something proves the seal."""
    path = drained.shard_path(complete, 7, 0).with_suffix(".seal")
    right = path.read_bytes()
    for bit in range(8 * len(right)):
        wrong = bytearray(right)
        wrong[bit // 8] ^= 1 << bit % 8
        path.write_bytes(wrong)
        with pytest.raises(DamagedCopyError):
            drained.load_drained(complete, 7, 0)
    path.write_bytes(right)
    drained.load_drained(complete, 7, 0)


def test_the_files_of_another_rank_or_step_are_refused(complete):
    """Intact, but not what was asked for."""
    for step, rank in ((7, 1), (8, 0)):
        for suffix in (".safetensors", ".seal"):
            other = drained.shard_path(complete, step, rank).with_suffix(suffix)
            other.parent.mkdir(exist_ok=True)
            own = drained.shard_path(complete, 7, 0).with_suffix(suffix)
            other.write_bytes(own.read_bytes())
        drained.finish_step(complete, step=step, ticket=1, world_size=1)
        with pytest.raises(DamagedCopyError):
            drained.load_drained(complete, step, rank)


def test_a_missing_shard_is_damage(complete):
    """Not a crash, even where its seal is still there."""
    drained.shard_path(complete, 7, 0).unlink()
    with pytest.raises(DamagedCopyError, match="rank 0 at step 7"):
        drained.load_drained(complete, 7, 0)


def test_a_damaged_manifest_makes_a_step_incomplete(complete):
    """It does not exist then; older ones do. One bit makes 1 rank 0, of which all are intact."""
    manifest = drained.step_directory(complete, 7) / "manifest.json"
    right = manifest.read_bytes()
    no_ranks = right.replace(b'"world_size":1', b'"world_size":0')
    for damaged in (b"{garbage", no_ranks, right[:-4] + b"\xb1" + right[-3:]):
        assert damaged != right
        manifest.write_bytes(damaged)
        assert drained.drained_steps(complete) == ()


def test_shards_of_another_ticket_are_refused(complete):
    """A manifest names the one checkpoint whose shards belong together."""
    manifest = drained.step_directory(complete, 7) / "manifest.json"
    manifest.write_text('{"step": 7, "ticket": 2, "world_size": 1}')
    with pytest.raises(DamagedCopyError, match="of another checkpoint"):
        drained.load_drained(complete, 7, 0)


def test_the_files_of_another_job_are_refused(complete, tmp_path, entry, capsys):
    """Which has the same numbers, and was copied over this one: each file is intact."""
    data = bytes(entry.data[:-1]) + b"x"
    identity = {"rank": 0, "ticket": 1, "step": 7, "home": 0, "world_size": 1}
    other = tmp_path / "other"
    drained.write_shard(other, Seal.of(memoryview(data), **identity), data)
    for path in drained.step_directory(other, 7).iterdir():
        path.rename(drained.step_directory(complete, 7) / path.name)
    with pytest.raises(DamagedCopyError, match="of another checkpoint"):
        drained.load_drained(complete, 7, 0)
    assert main(["verify", str(complete)]) == 1
    assert "rank 0: the shard is of another checkpoint" in capsys.readouterr().out


def test_two_machines_that_write_a_shard_at_once_leave_it_whole(tmp_path, until):
    """One was given up and comes back; in containers both may be process 7."""
    folder = drained.step_directory(tmp_path, 1)
    identity = {"rank": 0, "step": 1, "home": 0, "world_size": 1}
    shards = [memoryview(bytes([byte]) * (9 << 20)) for byte in (1, 2)]
    slow, fast = (Seal.of(data, ticket=index, **identity) for index, data in enumerate(shards, 1))
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(drained.write_shard, tmp_path, slow, shards[0], 3 << 20)
        until(lambda: any(path.stat().st_size for path in folder.glob(".*")), "half a shard")
        drained.write_shard(tmp_path, fast, shards[1])
        writing.result()
    assert drained.read_seal(tmp_path, 1, 0) in (slow, fast)
    drained.read_seal(tmp_path, 1, 0).verify(
        memoryview(drained.shard_path(tmp_path, 1, 0).read_bytes())
    )


def test_a_step_set_aside_is_incomplete_and_all_of_it_is_still_there(complete):
    """A user who knows better can rename the manifest back."""
    before = len(list(complete.rglob("*.*")))
    drained.set_aside(complete, 7)
    drained.set_aside(complete, 7)
    assert drained.drained_steps(complete) == ()
    assert len(list(complete.rglob("*.*"))) == before


def test_a_step_that_cannot_be_set_aside_is_not_among_those_that_are_left(complete):
    """It would be resumed again and again."""
    (drained.step_directory(complete, 7) / "manifest.damaged.json").mkdir()
    assert drained.set_aside(complete, 7) == []
    assert drained.drained_steps(complete) == (7,)


def test_a_directory_that_cannot_be_read_is_refused_before_anything_starts(tmp_path):
    """Training would begin at the beginning, in silence."""
    (tmp_path / "drained").touch()
    with pytest.raises(ConfigurationError, match=r"drained cannot be read.*Not a directory"):
        Checkpointer({"weight": torch.ones(1)}, drain_directory=str(tmp_path / "drained"))


def test_a_directory_that_is_not_there_yet_is_no_error(tmp_path):
    """The first drain makes it."""
    drained.check_readable(tmp_path / "drained")
