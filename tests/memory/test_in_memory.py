"""`InMemoryCheckpoint`: bounded, evicting, verified, thread-safe."""

import os
import resource
import threading
from unittest import mock

import pytest

from twinckpt.errors import DamagedCopyError, OutOfMemoryError
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot


def put(store, rank, ticket, data):
    """Store one version the way the agents do."""
    index = store.begin(rank, ticket)
    assert index is not None
    buffer = store.slot(rank, index).buffer[: len(data)]
    buffer[:] = data
    seal = Seal.of(buffer, rank=rank, ticket=ticket, step=ticket, home=0, world_size=1)
    return store.seal(seal)


@pytest.fixture
def store():
    store = InMemoryCheckpoint(max_checkpoints=2)
    store.reserve(0, 5000)
    return store


def test_a_sealed_version_can_be_read_back(store):
    """The entry holds the bytes and the seal that proves them."""
    put(store, 0, 1, b"abc" * 1000)
    entry = store.entry(0, 1)
    assert bytes(entry.data) == b"abc" * 1000
    entry.seal.verify(entry.data)


def test_the_number_of_checkpoints_is_bounded_until_a_commit_evicts(store):
    """A third version has to wait for the second to be committed."""
    put(store, 0, 1, b"1")
    put(store, 0, 2, b"2")
    assert store.begin(0, 3) is None
    store.drop_where(older_than=2)
    assert store.entry(0, 1) is None
    assert put(store, 0, 3, b"3").seal.ticket == 3
    assert [holding.ticket for holding in store.holdings()] == [2, 3]


def test_capacity_is_checked_before_memory_is_taken():
    """The error says what was needed and what is allowed, and nothing changes."""
    store = InMemoryCheckpoint(max_checkpoints=2, capacity_bytes=10 << 20)
    store.reserve(0, 3 << 20)
    before = store.allocated_bytes
    with pytest.raises(OutOfMemoryError, match=r"16 MiB are needed.*allows 10 MiB"):
        store.reserve(1, 5 << 20)
    assert store.allocated_bytes == before


def test_what_another_place_no_longer_needs_is_given_back_once_it_is_free(store):
    """A machine that changes its place would hold the shards of all the places it ever had."""
    put(store, 0, 1, b"until the next commit")
    size_bytes = store.allocated_bytes
    store.begin_generation()
    store.reserve(1, 5000)
    store.give_back()
    assert store.entry(0, 1) is not None
    store.drop_where(older_than=2)
    store.give_back()
    assert store.allocated_bytes == size_bytes
    assert put(store, 1, 2, b"as before").seal.ticket == 2


def test_what_is_needed_again_is_kept(store):
    """Most generations have the machines in their places, and memory takes time to get."""
    slots = store.slot(0, 0), store.slot(0, 1)
    store.begin_generation()
    store.reserve(0, 5000)
    store.give_back()
    assert (store.slot(0, 0), store.slot(0, 1)) == slots


def test_a_new_place_has_the_capacity_of_the_old_one():
    """What is held for the former generation comes on top until the next commit."""
    store = InMemoryCheckpoint(max_checkpoints=2, capacity_bytes=4 << 20)
    store.reserve(0, 2 << 20)
    store.begin_generation()
    store.reserve(1, 2 << 20)
    store.give_back()
    assert store.allocated_bytes == 4 << 20


def test_more_memory_than_the_machine_has_is_refused():
    """Before the kernel has to kill anything."""
    with pytest.raises(OutOfMemoryError, match="does not fit"):
        InMemoryCheckpoint().reserve(0, 1 << 50)


def test_a_process_without_descriptors_is_told_that_there_is_no_slot(store):
    """As one without memory, to which the same happens: the rank must hear of it."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        with pytest.raises(OutOfMemoryError, match="Too many open files"):
            store.reserve(1, 5000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_slots_grow_without_losing_what_they_hold(store):
    """Growth touches free slots only; the one in use grows when it is free."""
    put(store, 0, 1, b"kept" * 100)
    store.reserve(0, 100_000)
    assert bytes(store.entry(0, 1).data) == b"kept" * 100
    put(store, 0, 2, b"x" * 100_000)
    store.drop_where(older_than=2)
    put(store, 0, 3, b"y" * 100_000)


def test_a_slot_that_was_in_use_grows_into_memory_that_was_taken_before(store):
    """Taking it takes seconds a gigabyte, in which an agent would miss its heartbeats."""
    put(store, 0, 1, b"kept")
    store.reserve(0, 100_000)
    put(store, 0, 2, b"x" * 100_000)
    store.drop_where(older_than=2)
    with mock.patch.object(Slot, "allocate", side_effect=AssertionError):
        put(store, 0, 3, b"y" * 100_000)


@pytest.mark.parametrize("position", [0, 4095, 4999])
def test_a_flipped_bit_is_found(store, position):
    """Anywhere in the shard."""
    entry = put(store, 0, 1, b"a" * 5000)
    entry.slot.buffer[position] ^= 1
    with pytest.raises(DamagedCopyError, match="does not match its checksum"):
        entry.seal.verify(entry.data)


def test_a_pinned_version_outlives_its_eviction(store):
    """A peer that reads a slot gets the bytes of one version, never of two."""
    put(store, 0, 1, b"old")
    with store.pinned(0, 1) as entry:
        store.drop(0, 1)
        put(store, 0, 2, b"new")
        assert store.begin(0, 3) is None
        assert bytes(entry.data) == b"old"
    assert store.begin(0, 3) is not None


def test_readers_never_see_a_mixed_version(store):
    """Writers and readers in threads; each read verifies against its seal."""
    put(store, 0, 1, b"\x01" * 5000)
    newest = 1
    stop = threading.Event()
    damaged = []

    def read():
        while not stop.is_set():
            try:
                with store.pinned(0, newest) as entry:
                    entry.seal.verify(entry.data)
            except DamagedCopyError as error:
                if "no sealed copy" not in str(error):
                    damaged.append(error)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for ticket in range(2, 200):
        while store.begin(0, ticket) is None:
            pass
        store.drop(0, ticket)
        put(store, 0, ticket, bytes([ticket % 251]) * 5000)
        newest = ticket
        store.drop_where(older_than=ticket)
    stop.set()
    for thread in threads:
        thread.join()
    assert damaged == []


def test_memory_that_a_thread_still_looks_at_is_given_back_once_it_has_looked(store):
    """As scrubbing does, a chunk at a time: it takes no slot out of use."""
    fd, looked_at = store.slot(0, 0).fd, store.slot(0, 0).buffer[:100]
    store.begin_generation()
    store.give_back()
    assert store.allocated_bytes == 0
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
    assert bytes(looked_at) == bytes(100)
