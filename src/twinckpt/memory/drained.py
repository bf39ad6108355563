"""Draining: committed shards as files in persistent storage, the manifest last.

`<directory>/step-<step>/rank-<rank>.safetensors` is a byte copy of a slot, with its seal in
`rank-<rank>.seal`. The step counts once `manifest.json` is there: whoever finds all
the job's seals in place writes it, atomically; a step without it does not exist.
"""

import json
import os
import shutil
from pathlib import Path

import msgspec

from twinckpt.errors import DamagedCopyError
from twinckpt.memory.in_memory import CheckpointEntry
from twinckpt.memory.seal import Seal

_MANIFEST = "manifest.json"


def step_directory(directory: Path, step: int) -> Path:
    """Return where a step's shards lie."""
    return directory / f"step-{step:010d}"


def shard_path(directory: Path, step: int, rank: int) -> Path:
    """Return the path of one drained shard."""
    return step_directory(directory, step) / f"rank-{rank:05d}.safetensors"


def write_shard(directory: Path, entry: CheckpointEntry) -> None:
    """Copy one sealed slot to a file, durable before its seal appears beside it."""
    path = shard_path(directory, entry.seal.step, entry.seal.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    _publish(path, entry.data)
    _publish(path.with_suffix(".seal"), msgspec.msgpack.encode(entry.seal))


def finish_step(directory: Path, step: int, ticket: int, world_size: int) -> bool:
    """Write the manifest if all shards of this ticket are durable; return whether they are."""
    folder = step_directory(directory, step)
    for rank in range(world_size):
        seal = read_seal(directory, step, rank)
        if seal is None or seal.ticket != ticket:
            return False
    manifest = {"step": step, "ticket": ticket, "world_size": world_size}
    _publish(folder / _MANIFEST, json.dumps(manifest).encode())
    return True


def read_seal(directory: Path, step: int, rank: int) -> Seal | None:
    """Return the seal of a drained shard, or None if the shard is not complete."""
    path = shard_path(directory, step, rank).with_suffix(".seal")
    try:
        return msgspec.msgpack.decode(path.read_bytes(), type=Seal)
    except (FileNotFoundError, msgspec.DecodeError):
        return None


def drained_steps(directory: Path) -> tuple[int, ...]:
    """Return the complete steps in a directory, oldest first."""
    return tuple(
        sorted(
            int(manifest.parent.name.removeprefix("step-"))
            for manifest in directory.glob(f"step-*/{_MANIFEST}")
        )
    )


def newest_ticket(directory: Path) -> int:
    """Return the newest ticket of which a shard is in a directory, complete or not; 0 if none.

    One shard a step is looked at: those of a step that counts are all of one ticket.
    """
    tickets = [0]
    for folder in directory.glob("step-*"):
        for path in folder.glob("rank-*.seal"):
            try:
                tickets.append(msgspec.msgpack.decode(path.read_bytes(), type=Seal).ticket)
            except (OSError, msgspec.DecodeError):
                continue
            break
    return max(tickets)


def keep_newest(directory: Path, keep: int) -> None:
    """Delete all complete steps but the newest `keep`."""
    for step in drained_steps(directory)[:-keep]:
        folder = step_directory(directory, step)
        (folder / _MANIFEST).unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)


def _publish(path: Path, data: bytes | memoryview) -> None:
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def load_drained(directory: str, step: int, rank: int) -> tuple[Seal, memoryview]:
    """Read a drained shard and verify it; raises DamagedCopyError if it is not intact."""
    folder = Path(directory)
    seal = read_seal(folder, step, rank)
    if seal is None:
        raise DamagedCopyError(f"no complete shard of rank {rank} at step {step} in {directory}")
    with shard_path(folder, step, rank).open("rb") as file:
        buffer = memoryview(bytearray(seal.size_bytes))
        file.readinto(buffer)
    seal.verify(buffer)
    return seal, buffer
