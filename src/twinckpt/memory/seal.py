"""The seal of a shard: what it is, how long it is, and the checksums that prove it."""

from dataclasses import dataclass

import xxhash

from twinckpt.core.messages import Holding
from twinckpt.errors import DamagedCopyError
from twinckpt.memory.checksums import CHUNK_BYTES, DIGEST_BYTES, checksum, first_damaged_chunk


@dataclass(frozen=True, slots=True)
class Seal:
    """Made once, when a slot is complete; travels with every copy of the shard.

    `digests` are the checksums of the first `size_bytes` bytes of the slot, by chunk.
    """

    rank: int
    ticket: int
    step: int
    home: int
    world_size: int
    size_bytes: int
    digests: bytes
    chunk_bytes: int = CHUNK_BYTES

    def __post_init__(self) -> None:
        expected = -(-self.size_bytes // self.chunk_bytes) * DIGEST_BYTES
        if len(self.digests) != expected:
            raise DamagedCopyError(
                f"seal of rank {self.rank} at step {self.step} has {len(self.digests)} bytes of "
                f"checksums, {expected} expected for {self.size_bytes} bytes"
            )

    @property
    def holding(self) -> Holding:
        """Return the short form that the control plane works with."""
        identity = (
            self.rank,
            self.ticket,
            self.step,
            self.home,
            self.world_size,
            self.size_bytes,
        )
        digest = xxhash.xxh3_128(repr(identity).encode())
        digest.update(self.digests)
        return Holding(*identity, digest=digest.hexdigest())

    def verify(self, buffer: memoryview) -> None:
        """Raise DamagedCopyError unless these bytes are the ones that were sealed."""
        if len(buffer) < self.size_bytes:
            raise DamagedCopyError(
                f"shard of rank {self.rank} at step {self.step} has {len(buffer)} bytes, "
                f"{self.size_bytes} expected"
            )
        damaged = first_damaged_chunk(buffer[: self.size_bytes], self.digests, self.chunk_bytes)
        if damaged is not None:
            raise DamagedCopyError(
                f"shard of rank {self.rank} at step {self.step}: chunk {damaged} "
                f"(bytes from {damaged * self.chunk_bytes}) does not match its checksum"
            )

    @classmethod
    def of(cls, buffer: memoryview, **identity: int) -> "Seal":
        """Seal all bytes of `buffer`; `identity` names rank, ticket, step, home, world_size."""
        return cls(size_bytes=len(buffer), digests=checksum(buffer), **identity)
