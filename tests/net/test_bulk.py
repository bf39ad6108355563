"""Shards travel between real sockets, authenticated and verified chunk by chunk."""

import os
import socket
from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest

from helpers import has_ipv6
from twinckpt.core.messages import Address
from twinckpt.errors import AuthenticationError, DamagedCopyError, TwinckptError
from twinckpt.memory.checksums import CHUNK_BYTES
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net.auth import authenticate, server_exchange
from twinckpt.net.bulk import BulkClient, BulkServer, TransferCancelled, _receive_seal
from twinckpt.net.wire import ProtocolError, frame

SECRET = b"a secret of the job that is long"
SIZE_BYTES = (3 << 20) + 123


@pytest.fixture
def sender():
    """A machine that holds one shard of random bytes."""
    store = InMemoryCheckpoint()
    store.reserve(3, SIZE_BYTES)
    buffer = store.slot(3, store.begin(3, 5)).buffer[:SIZE_BYTES]
    buffer[:] = os.urandom(SIZE_BYTES)
    store.seal(Seal.of(buffer, rank=3, ticket=5, step=50, home=1, world_size=4))
    server = BulkServer(store, SECRET, "127.0.0.1")
    yield store, Address("sender", "127.0.0.1", server.port)
    server.close()


def test_a_shard_arrives_whole_with_its_seal(sender):
    """Into the receiver's own buffer."""
    store, address = sender
    target = memoryview(bytearray(SIZE_BYTES))
    seal = BulkClient(SECRET).fetch(address, 3, 5, target)
    assert seal == store.entry(3, 5).seal
    assert target == store.entry(3, 5).data


@pytest.mark.skipif(not has_ipv6(), reason="no IPv6")
def test_a_machine_may_have_an_ipv6_address(sender):
    """Peers are told such an address as its host."""
    store, _ = sender
    server = BulkServer(store, SECRET, "::1")
    target = memoryview(bytearray(SIZE_BYTES))
    BulkClient(SECRET).fetch(Address("sender", "::1", server.port), 3, 5, target).verify(target)
    server.close()


def test_one_connection_serves_many_shards(sender):
    """A second fetch works on the idle connection of the first."""
    _, address = sender
    client = BulkClient(SECRET)
    for _ in range(3):
        target = memoryview(bytearray(SIZE_BYTES))
        client.fetch(address, 3, 5, target).verify(target)


def test_a_damaged_source_is_noticed_while_it_arrives(sender):
    """A bit flipped in the sender's RAM after the seal."""
    store, address = sender
    store.entry(3, 5).slot.buffer[4 * CHUNK_BYTES] ^= 4
    with pytest.raises(DamagedCopyError, match=r"from machine .* chunk 4 "):
        BulkClient(SECRET).fetch(address, 3, 5, memoryview(bytearray(SIZE_BYTES)))


@pytest.fixture
def called():
    """A fetch under way, whom it calls, and that machine's end of the connection."""
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        address = Address("called", *listener.getsockname())
        client = BulkClient(SECRET)
        fetching = pool.submit(client.fetch, address, 3, 5, memoryview(bytearray(SIZE_BYTES)))
        sock, _ = listener.accept()
        with sock:
            yield client, fetching, address, sock


def test_a_transfer_from_a_machine_that_froze_can_be_ended(called):
    """Its kernel still answers, and it sends nothing; unless there is no better source."""
    client, fetching, address, sock = called
    authenticate(sock, server_exchange(SECRET))
    assert sock.recv(16, socket.MSG_WAITALL)  # the request
    client.cancel(3, 5, unless_from=[address])
    client.cancel(3, 4)
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(1)
    client.cancel(3, 5)
    with pytest.raises(TransferCancelled, match="rank 3 at ticket 5"):
        fetching.result()


def test_a_transfer_whose_connection_is_being_made_can_be_ended_too(called):
    """It used to be forgotten, and kept its slot for as long as the peer took to send."""
    client, fetching, _, sock = called
    client.cancel(3, 5)
    authenticate(sock, server_exchange(SECRET))
    with pytest.raises(TransferCancelled, match="rank 3 at ticket 5"):
        fetching.result()


def test_a_version_that_is_not_there_is_refused(sender):
    """The receiver learns it at once."""
    _, address = sender
    with pytest.raises(DamagedCopyError, match="has no copy of rank 3 at ticket 6"):
        BulkClient(SECRET).fetch(address, 3, 6, memoryview(bytearray(SIZE_BYTES)))


def test_a_slot_that_is_too_small_is_not_overrun(sender):
    """The length is checked before a byte is written."""
    _, address = sender
    target = memoryview(bytearray(1000))
    with pytest.raises(ProtocolError, match="the slot 1000"):
        BulkClient(SECRET).fetch(address, 3, 5, target)
    assert bytes(target) == bytes(1000)


def test_a_caller_without_the_secret_gets_nothing(sender):
    """The proof comes before any request."""
    _, address = sender
    with pytest.raises(AuthenticationError, match="is TWINCKPT_SECRET here what the job has"):
        BulkClient(b"another secret, just as long....").fetch(
            address, 3, 5, memoryview(bytearray(SIZE_BYTES))
        )


def test_garbage_on_the_port_does_not_stop_the_service(sender):
    """Random bytes instead of a handshake."""
    _, address = sender
    for _ in range(5):
        with socket.create_connection((address.host, address.bulk_port)) as sock:
            sock.sendall(os.urandom(4096))
    target = memoryview(bytearray(SIZE_BYTES))
    BulkClient(SECRET).fetch(address, 3, 5, target).verify(target)


def test_a_server_that_is_closed_accepts_nobody(sender):
    """Its thread waits for callers all the while, and would take one more."""
    store, _ = sender
    server = BulkServer(store, SECRET, "127.0.0.1")
    socket.create_connection(("127.0.0.1", server.port)).close()
    server.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port))


def test_a_machine_that_is_gone_is_an_error_not_a_wait(sender):
    """Nothing listens on the port."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        BulkClient(SECRET).fetch(
            Address("gone", "127.0.0.1", port), 3, 5, memoryview(bytearray(SIZE_BYTES))
        )


def test_a_seal_that_is_damaged_on_its_way_is_refused_whichever_bit_it_was(sender):
    """An error of another kind would end the receiving thread, and nobody would hear of it."""
    store, address = sender
    payload = msgspec.msgpack.encode(store.entry(3, 5).seal)
    num_refused = 0
    for bit in range(8 * len(payload)):
        damaged = bytearray(payload)
        damaged[bit // 8] ^= 1 << bit % 8
        ends = socket.socketpair()
        with ends[0], ends[1]:
            ends[0].sendall(frame(bytes(damaged)))
            try:
                _receive_seal(ends[1], address, 3, 5)  # a digest may be another: its chunk tells
            except TwinckptError:
                num_refused += 1
    assert num_refused > 0
