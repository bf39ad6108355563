"""The emulated link and the chunks that travel over it: order, duration, credits, bytes."""

import socket
import struct
import threading

import pytest

from twinckpt.core.interleaving import Link
from twinckpt.experiments.ranks.chunk_ring import ChunkReceiver, ChunkSender
from twinckpt.experiments.ranks.emulated_link import EmulatedLink

FAST_BYTES_PER_S = 1e12


def test_transfers_share_the_link_one_after_the_other():
    """First come, first served; what comes later waits."""
    link = EmulatedLink(Link(0.0, FAST_BYTES_PER_S))
    order = []
    held = threading.Event()
    link.submit("training", 1, held.wait)
    futures = [link.submit("checkpoint", 1, lambda i=i: order.append(i)) for i in range(5)]
    assert order == []
    held.set()
    futures[-1].result(timeout=10)
    assert order == [0, 1, 2, 3, 4]


def test_a_transfer_holds_the_link_as_long_as_the_emulated_one_would():
    """However fast the real one was; intervals do not overlap."""
    physics = Link(0.002, 1e6)
    link = EmulatedLink(physics)
    futures = [link.submit("checkpoint", size, lambda: None) for size in (1000, 5000)]
    futures[-1].result(timeout=10)
    first, second = link.take_busy()
    assert first.end_s - first.start_s >= physics.transfer_s(1000)
    assert second.end_s - second.start_s >= physics.transfer_s(5000)
    assert second.start_s >= first.end_s
    assert link.take_busy() == []


@pytest.fixture
def connected():
    """A sender's and a receiver's end."""
    ends = socket.socketpair()
    yield ends
    for end in ends:
        end.close()


@pytest.mark.parametrize("num_sub_buffers", [1, 4])
def test_chunks_arrive_where_they_belong(connected, num_sub_buffers):
    """In whatever order and sizes they are sent."""
    ours, theirs = connected
    shard = bytes(range(256)) * 4
    sender = ChunkSender(ours)
    receiver = ChunkReceiver(theirs, len(shard), FAST_BYTES_PER_S)
    for offset, size in ((512, 100), (0, 512), (612, 412)):
        sender.wait_for_buffer(num_sub_buffers)
        sender.send(memoryview(shard), offset, size)
    sender.wait_until_copied()
    assert receiver.memory == shard


def test_a_sender_waits_when_all_sub_buffers_are_taken(connected):
    """Until the receiver says that one is free again."""
    ours, theirs = connected
    sender = ChunkSender(ours)
    for _ in range(2):
        sender.wait_for_buffer(2)
        sender.send(memoryview(b"ab"), 0, 2)
    third = threading.Thread(target=sender.wait_for_buffer, args=(2,))
    third.start()
    theirs.recv(2 * (struct.calcsize(">QQQ") + 2), socket.MSG_WAITALL)
    assert third.is_alive()
    theirs.sendall(b"\1")
    third.join(timeout=10)
    assert not third.is_alive()
