"""What proves a shard's bytes."""

import os

import pytest

from twinckpt.errors import DamagedCopyError
from twinckpt.memory.checksums import DIGEST_BYTES, checksum
from twinckpt.memory.seal import Seal

CHUNK_BYTES = 1024


@pytest.fixture
def seal():
    data = os.urandom(3 * CHUNK_BYTES + 5)
    identity = {"rank": 2, "ticket": 1, "step": 7, "home": 0, "world_size": 4}
    digests = checksum(memoryview(data), CHUNK_BYTES)
    return Seal(size_bytes=len(data), digests=digests, chunk_bytes=CHUNK_BYTES, **identity)


@pytest.mark.parametrize("num_chunks", [0, 1, 3, 4])
def test_checksums_taken_elsewhere_prove_the_first_chunks(seal, num_chunks):
    seal.verify_digests(seal.digests[: num_chunks * DIGEST_BYTES])


@pytest.mark.parametrize("chunk", [0, 2])
def test_checksums_taken_elsewhere_show_which_chunk_is_damaged(seal, chunk):
    found = bytearray(seal.digests[: 3 * DIGEST_BYTES])
    found[chunk * DIGEST_BYTES] ^= 1
    with pytest.raises(DamagedCopyError, match=rf"rank 2 at step 7: chunk {chunk} \(bytes from"):
        seal.verify_digests(bytes(found))
