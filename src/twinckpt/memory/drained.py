"""Draining: committed shards as files in persistent storage, the manifest last.

`<directory>/step-<step>/rank-<rank>.safetensors` is a byte copy of a slot, with its seal in
`rank-<rank>.seal` (a format number and a checksum before it: the seal proves the shard, and this
proves the seal). The step counts once `manifest.json` is there: whoever finds all the job's seals
in place writes it, atomically; a step without it does not exist.
"""

import logging
import os
import secrets
import shutil
import time
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import xxhash

from twinckpt.core.copies import checkpoint_digest
from twinckpt.errors import ConfigurationError, DamagedCopyError
from twinckpt.memory.seal import SEAL_DECODER, Seal

logger = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_SEAL_FORMAT = b"twinckpt seal 1\n"
_SEAL_DIGEST_BYTES = 16
_PIECE_BYTES = 4 << 20


class Manifest(msgspec.Struct, frozen=True):
    """What makes a step complete: its ticket, how many ranks wrote it, and each shard's digest."""

    step: int
    ticket: int
    world_size: int
    digests: tuple[str, ...] = ()

    def covers(self, seal: Seal) -> bool:
        """Return whether a shard is of this checkpoint, not of another with the same numbers."""
        if (seal.ticket, seal.world_size) != (self.ticket, self.world_size):
            return False
        digests = self.digests[seal.rank : seal.rank + 1]
        return not self.digests or digests == (seal.holding.digest,)


_MANIFEST_DECODER = msgspec.json.Decoder(Manifest)


def step_directory(directory: Path, step: int) -> Path:
    """Return where a step's shards lie."""
    return directory / f"step-{step:010d}"


def shard_path(directory: Path, step: int, rank: int) -> Path:
    """Return the path of one drained shard."""
    return step_directory(directory, step) / f"rank-{rank:05d}.safetensors"


def location(directory: str) -> Path:
    """Return where a path or a URL (`s3://…`, `gs://…`, by fsspec's drivers) points.

    Raises ConfigurationError if there is no driver for it.
    """
    scheme, separator, rest = directory.partition("://")
    if not separator or scheme == "file":
        return Path(rest if separator else directory)
    try:
        import fsspec  # takes time, which a plain path does not need
        from upath import UPath

        fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        what = f"{error}; storage by URL needs `pip install 'twinckpt[storage]'` and a driver"
        raise ConfigurationError(f"{scheme}://…: {what}") from error
    except ValueError as error:
        raise ConfigurationError(f"{scheme}://…: {error}") from error
    return cast(Path, UPath(directory))


def write_shard(
    directory: Path, seal: Seal, data: bytes | memoryview, bytes_per_s: float = 0.0
) -> None:
    """Copy one sealed shard to a file, durable before its seal appears beside it.

    With `bytes_per_s` it takes its time, to leave the storage to others. A step that an earlier
    checkpoint had completed is complete again only when all of its shards are replaced.
    """
    path = shard_path(directory, seal.step, seal.rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    manifest = read_manifest(directory, seal.step)
    found = read_seal(directory, seal.step, seal.rank)
    if manifest is not None and (manifest.ticket != seal.ticket or found != seal):
        (path.parent / _MANIFEST).unlink(missing_ok=True)
    _publish(path, data, bytes_per_s)
    _publish(path.with_suffix(".seal"), _pack_seal(seal))


def finish_step(directory: Path, step: int, ticket: int, world_size: int, digest: str = "") -> bool:
    """Write the manifest if all shards of this ticket are durable; return whether they are.

    Raises DamagedCopyError if they are not those of the checkpoint with this `digest`: a job
    issues each ticket only once, so another job must drain to this directory as well.
    """
    folder = step_directory(directory, step)
    shards = []
    for rank in range(world_size):
        seal = read_seal(directory, step, rank)
        if seal is None or seal.ticket != ticket:
            return False
        shards.append(seal.holding.digest)
    if digest and digest != checkpoint_digest(shards):
        (folder / _MANIFEST).unlink(missing_ok=True)
        raise DamagedCopyError("another job drains to this directory too: give each one its own")
    manifest = Manifest(step, ticket, world_size, tuple(shards))
    _publish(folder / _MANIFEST, msgspec.json.encode(manifest))
    return True


def read_manifest(directory: Path, step: int) -> Manifest | None:
    """Return the manifest that makes a step complete; None if there is none, or none is intact."""
    try:
        content = (step_directory(directory, step) / _MANIFEST).read_bytes()
        manifest = _MANIFEST_DECODER.decode(content)
    except (OSError, ValueError):  # no JSON, or no text at all
        return None
    return manifest if manifest.step == step and manifest.world_size > 0 else None


def read_seal(directory: Path, step: int, rank: int) -> Seal | None:
    """Return the seal of a drained shard; None if it is missing, damaged, or another's."""
    seal = _read_seal(shard_path(directory, step, rank).with_suffix(".seal"))
    return seal if seal is not None and (seal.rank, seal.step) == (rank, step) else None


def sealed_ranks(directory: Path, step: int) -> list[int]:
    """Return the ranks of which there is a seal at a step, intact or not, in order."""
    names = (path.stem for path in step_directory(directory, step).glob("rank-*.seal"))
    numbers = {name.removeprefix("rank-") for name in names}
    return sorted({int(number) for number in numbers if number.isdecimal()})


def is_filled(directory: Path) -> bool:
    """Return whether there is a directory with anything in it.

    Raises OSError where it may not be looked at, or is a file: a search for steps finds nothing
    there, and `Path.exists` says no from Python 3.14 on.
    """
    try:
        directory.stat()
    except FileNotFoundError:
        return False
    return any(directory.iterdir())


def check_readable(directory: Path) -> None:
    """Raise ConfigurationError if a directory cannot be read, and so seems to hold no step."""
    try:
        is_filled(directory)
    except Exception as error:  # drivers of remote storage raise their own
        raise ConfigurationError(
            f"drain_directory={directory} cannot be read, and training would begin at the "
            f"beginning: {error}"
        ) from error


def drained_steps(directory: Path) -> tuple[int, ...]:
    """Return the complete steps in a directory, oldest first."""
    names = (
        path.parent.name.removeprefix("step-") for path in directory.glob(f"step-*/{_MANIFEST}")
    )
    steps = sorted(int(name) for name in names if name.isdecimal())
    return tuple(step for step in steps if read_manifest(directory, step))


def known(directory: Path) -> tuple[tuple[int, ...], int]:
    """Return the complete steps in a directory and its newest ticket; none while unreadable.

    A job is refused if the directory cannot be read at the start; later it goes on without it.
    """
    try:
        return drained_steps(directory), newest_ticket(directory)
    except Exception as error:  # drivers of remote storage raise their own
        logger.warning("what is drained to %s cannot be read now: %s", directory, error)
        return (), 0


def newest_ticket(directory: Path) -> int:
    """Return the newest ticket of which a shard is in a directory, complete or not; 0 if none.

    One shard a step is looked at: those of a step that counts are all of one ticket.
    """
    newest = 0
    for folder in directory.glob("step-*"):
        seals = map(_read_seal, folder.glob("rank-*.seal"))
        newest = max(newest, next((seal.ticket for seal in seals if seal is not None), 0))
    return newest


def set_aside(directory: Path, step: int) -> list[int]:
    """Make a damaged step incomplete: rename its manifest, so that nothing more is lost.

    Returns the complete steps that are left, even if the manifest cannot be renamed.
    """
    manifest = step_directory(directory, step) / _MANIFEST
    try:
        manifest.rename(manifest.with_suffix(".damaged.json"))
    except FileNotFoundError:  # another rank found damage as well
        pass
    except OSError as error:
        logger.warning("step %d stays, for the next job to find it damaged again: %s", step, error)
    return [left for left in drained_steps(directory) if left != step]


def keep_newest(directory: Path, keep: int) -> None:
    """Delete all complete steps but the newest `keep`, and what failures left of older ones.

    Raises the first error, once all that can be deleted is.
    """
    complete, errors = drained_steps(directory), []
    for folder in directory.glob("step-*"):
        name = folder.name.removeprefix("step-")
        is_older = name.isdecimal() and bool(complete) and int(name) < complete[-1]
        if is_older and int(name) not in complete[-keep:]:
            try:
                (folder / _MANIFEST).unlink(missing_ok=True)
                _remove(folder)
            except Exception as error:  # drivers of remote storage raise their own
                errors.append(error)
    if errors:
        raise errors[0]


def _publish(path: Path, data: bytes | memoryview, bytes_per_s: float = 0.0) -> None:
    if not _is_local(path):
        # What breaks off has no seal; an object store shows nothing before it is whole.
        with path.open("wb") as file:
            _write(file, data, bytes_per_s)
        return
    # Machines share the storage, and may have one and the same process number.
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with draft.open("wb") as file:
            _write(file, data, bytes_per_s)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise
    for folder in (path.parent, path.parent.parent):  # a step's directory may be new as well
        fd = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write(file: BinaryIO, data: bytes | memoryview, bytes_per_s: float) -> None:
    for start in range(0, len(data), _PIECE_BYTES):
        piece = data[start : start + _PIECE_BYTES]
        file.write(piece)
        if bytes_per_s:
            time.sleep(len(piece) / bytes_per_s)


def _remove(folder: Path) -> None:
    if _is_local(folder):
        shutil.rmtree(folder, ignore_errors=True)
    else:
        cast(Any, folder).fs.rm(cast(Any, folder).path, recursive=True)


def _is_local(path: Path) -> bool:
    return isinstance(path, Path)


def load_drained(directory: Path, step: int, rank: int) -> tuple[Seal, memoryview]:
    """Read a drained shard and verify it; raises DamagedCopyError if it is not intact."""
    manifest, seal = read_manifest(directory, step), read_seal(directory, step, rank)
    if manifest is None or seal is None:
        raise DamagedCopyError(f"no complete shard of rank {rank} at step {step} in {directory}")
    if not manifest.covers(seal):
        raise DamagedCopyError(f"shard of rank {rank} at step {step} is of another checkpoint")
    try:
        path = shard_path(directory, step, rank)
        size_bytes = min(seal.size_bytes, path.stat().st_size)  # `verify` refuses one that is short
        with path.open("rb") as file:
            buffer = memoryview(bytearray(size_bytes))
            num_bytes = 0
            while part := file.readinto(buffer[num_bytes:]):
                num_bytes += part
    except OSError as error:
        raise DamagedCopyError(f"shard of rank {rank} at step {step}: {error}") from error
    seal.verify(buffer)
    return seal, buffer


def check_length(directory: Path, seal: Seal) -> None:
    """Raise DamagedCopyError if a shard's file goes on after what was sealed.

    A restore does not check this: what was sealed is there, and a step set aside would be lost.
    """
    size_bytes = shard_path(directory, seal.step, seal.rank).stat().st_size
    if size_bytes > seal.size_bytes:
        raise DamagedCopyError(
            f"shard of rank {seal.rank} at step {seal.step} has {size_bytes} bytes, and "
            f"{seal.size_bytes} were sealed: cut off the rest, which is not of the checkpoint"
        )


def _pack_seal(seal: Seal) -> bytes:
    content = msgspec.msgpack.encode(seal)
    return _SEAL_FORMAT + xxhash.xxh3_128_digest(content) + content


def _read_seal(path: Path) -> Seal | None:
    try:
        found = path.read_bytes()
        start = len(_SEAL_FORMAT) + _SEAL_DIGEST_BYTES
        content = found[start:]
        if found[:start] != _SEAL_FORMAT + xxhash.xxh3_128_digest(content):
            return None
        return SEAL_DECODER.decode(content)
    except (OSError, msgspec.DecodeError, DamagedCopyError):
        return None
