"""Checksums by chunk: XXH3-64 of every half mebibyte of a shard, of more if it is very large.

XXH3 runs at the speed of memory, so it is taken while a chunk is still in the core's cache. Smaller
chunks are copied more slowly, larger ones leave the cache before they are hashed or sent on
(docs/limits.md).
It finds damage, not forgery: forged bytes are kept out by authenticated connections.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import xxhash

CHUNK_BYTES = 1 << 19
MAX_CHUNKS = 1 << 15
DIGEST_BYTES = 8


def chunk_bytes_of(size_bytes: int) -> int:
    """Return how large the chunks of a shard are: larger ones, if it has more than 16 GiB.

    A rank and its agent tell each other all checksums in one message, and the kernel takes none of
    more than 416 KiB, as long as nobody has raised `net.core.wmem_max`.
    """
    chunk_bytes = CHUNK_BYTES
    while size_bytes > MAX_CHUNKS * chunk_bytes:
        chunk_bytes *= 2
    return chunk_bytes


def chunk_digest(chunk: memoryview) -> bytes:
    """Return the checksum of one chunk, `DIGEST_BYTES` long."""
    return xxhash.xxh3_64_digest(chunk)


def digest_of(parts: Iterable[memoryview]) -> bytes:
    """Return the checksum of a chunk that lies in parts."""
    taken = xxhash.xxh3_64()
    for part in parts:
        taken.update(part)
    return taken.digest()


def chunk_digests(some: Sequence[memoryview], num_threads: int = 1) -> list[bytes]:
    """Return the checksums of some chunks, taken by as many threads."""
    if num_threads == 1:
        return [chunk_digest(chunk) for chunk in some]
    with ThreadPoolExecutor(num_threads) as pool:
        shares = (some[first::num_threads] for first in range(num_threads))
        found = list(pool.map(chunk_digests, shares))
    return [found[index % num_threads][index // num_threads] for index in range(len(some))]


def chunks(buffer: memoryview, chunk_bytes: int = CHUNK_BYTES) -> Iterator[memoryview]:
    """Yield the buffer in order, in views of at most `chunk_bytes`."""
    for start in range(0, len(buffer), chunk_bytes):
        yield buffer[start : start + chunk_bytes]


def checksum(buffer: memoryview, chunk_bytes: int = CHUNK_BYTES) -> bytes:
    """Return the concatenated checksums of all chunks."""
    return b"".join(chunk_digests(list(chunks(buffer, chunk_bytes))))
