"""The seal of a shard: what it is, how long it is, and the checksums that prove it."""

from dataclasses import dataclass

import msgspec
import xxhash

from twinckpt.core.messages import Holding
from twinckpt.errors import DamagedCopyError
from twinckpt.memory.checksums import DIGEST_BYTES, checksum, chunk_bytes_of, chunk_digest


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
    chunk_bytes: int

    def __post_init__(self) -> None:
        if self.chunk_bytes < 1 or self.size_bytes < 0:
            raise DamagedCopyError(
                f"seal of rank {self.rank} at step {self.step} has chunks of {self.chunk_bytes} "
                f"bytes, {self.size_bytes} in all"
            )
        expected = self.num_chunks * DIGEST_BYTES
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
        for index in range(self.num_chunks):
            self.verify_chunk(buffer, index)

    @property
    def num_chunks(self) -> int:
        """Number of chunks, the last one perhaps shorter."""
        return -(-self.size_bytes // self.chunk_bytes)

    def verify_chunk(self, buffer: memoryview, index: int) -> None:
        """Raise DamagedCopyError unless chunk `index` of the slot is as it was sealed."""
        start = index * self.chunk_bytes
        chunk = buffer[start : min(start + self.chunk_bytes, self.size_bytes)]
        if chunk_digest(chunk) != self._digest(index):
            raise self._damage(index)

    def verify_digests(self, digests: bytes) -> None:
        """Raise DamagedCopyError unless these are the checksums of the first chunks."""
        if not self.digests.startswith(digests):
            found = range(len(digests) // DIGEST_BYTES)
            raise self._damage(
                next(i for i in found if not digests.startswith(self._digest(i), i * DIGEST_BYTES))
            )

    def _digest(self, index: int) -> bytes:
        return self.digests[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]

    def _damage(self, index: int) -> DamagedCopyError:
        return DamagedCopyError(
            f"shard of rank {self.rank} at step {self.step}: chunk {index} "
            f"(bytes from {index * self.chunk_bytes}) does not match its checksum"
        )

    @classmethod
    def of(cls, buffer: memoryview, **identity: int) -> "Seal":
        """Seal all bytes of `buffer`; `identity` names rank, ticket, step, home, world_size."""
        chunk_bytes = chunk_bytes_of(len(buffer))
        digests = checksum(buffer, chunk_bytes)
        return cls(size_bytes=len(buffer), digests=digests, chunk_bytes=chunk_bytes, **identity)


# Made once: msgspec may crash where two threads meet a type for the first time.
SEAL_DECODER = msgspec.msgpack.Decoder(Seal)
