"""What proves a shard's bytes."""

import os
import socket

import pytest

from twinckpt.errors import DamagedCopyError
from twinckpt.memory.checksums import DIGEST_BYTES, checksum, chunk_bytes_of
from twinckpt.memory.seal import Seal
from twinckpt.net import local
from twinckpt.net.local_socket import MAX_MESSAGE_BYTES

CHUNK_BYTES = 1024
WMEM_MAX_BYTES = 212_992  # what Linux allows as long as nobody has said otherwise


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


@pytest.mark.parametrize("size_bytes", [16 << 30, 100 << 30, 1 << 40])
def test_of_a_shard_of_any_size_a_rank_can_tell_its_agent(size_bytes):
    """The kernel refuses a longer message, and the agent one that it gets half of."""
    chunk_bytes = chunk_bytes_of(size_bytes)
    digests = bytes(size_bytes // chunk_bytes * DIGEST_BYTES)
    identity = {"rank": 2, "ticket": 1, "step": 7, "home": 0, "world_size": 4}
    seal = Seal(size_bytes=size_bytes, digests=digests, chunk_bytes=chunk_bytes, **identity)
    message = local.TO_AGENT.encode(local.Staged(seal))
    rank, agent = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with rank, agent:
        rank.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, WMEM_MAX_BYTES)
        rank.send(message)
        received = agent.recv(MAX_MESSAGE_BYTES)
    assert local.TO_AGENT.decode(received) == local.Staged(seal)
