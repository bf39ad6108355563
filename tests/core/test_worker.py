"""The worker's decisions: which late or repeated news must not take a slot."""

import pytest

from twinckpt.core import messages as m
from twinckpt.core.worker import Worker
from twinckpt.core.worker_actions import GrantSlot, StartDrain, TellRefused, ToRootAgent
from twinckpt.errors import OutOfMemoryError
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.simulation.store import BookkeptSlots


class SmallMemory(BookkeptSlots):
    """Slots of a machine that has no room for peers."""

    def reserve(self, rank, slot_bytes):
        if rank:
            raise OutOfMemoryError(f"{slot_bytes} bytes are needed")
        super().reserve(rank, slot_bytes)


@pytest.fixture
def worker():
    worker = Worker(SmallMemory(2))
    worker.receive(m.Formed(1, 0, 1, "a:1", None))
    worker.attach(0, 1, 10)
    return worker


def grants(actions):
    return [action.ticket for action in actions if isinstance(action, GrantSlot)]


def test_a_ticket_told_twice_is_granted_once(worker):
    """The rank has its slot."""
    assert grants(worker.receive(m.Ticket(1, 1, 0))) == [1]
    assert grants(worker.receive(m.Ticket(1, 1, 0))) == []


@pytest.mark.parametrize("committed", [True, False])
def test_late_news_of_a_decided_ticket_takes_no_slot(worker, committed):
    """Nobody would ever free it."""
    worker.receive(m.Resolve(1, 1, 5, committed))
    assert grants(worker.receive(m.Ticket(1, 1, 0))) == []
    assert grants(worker.receive(m.Ticket(1, 2, 0))) == [2]


def test_an_abandoned_ticket_frees_the_slot_that_a_peers_first_copy_arrives_in():
    """Of that rank nothing is sealed here yet."""
    worker = Worker(BookkeptSlots(2))
    worker.receive(m.Formed(1, 0, 2, "a:1", None))
    worker.receive(m.Fetch(1, 7, 1, 10, (m.Address("peer", "host", 1),)))
    assert worker.slots.find(7, 1) is not None
    worker.receive(m.Resolve(1, 1, 5, committed=False))
    assert worker.slots.find(7, 1) is None


def test_a_peer_without_room_says_so(worker):
    """With the reason, for whoever has to act on it."""
    actions = worker.receive(m.Reserve(1, 7, 10))
    assert actions == [ToRootAgent(m.CannotReserve(1, 7, "10 bytes are needed"))]


def test_a_rank_is_told_that_its_replica_has_no_room(worker):
    """It would wait for a ticket for ever."""
    assert worker.receive(m.CannotReserve(1, 0, "too small")) == [TellRefused(0, "too small")]


def test_messages_of_another_generation_are_refused(worker):
    """Older ones come late, newer ones need their Formed first."""
    for generation in (0, 2):
        assert worker.receive(m.Ticket(generation, 1, 0)) == []
        assert worker.receive(m.Broken(generation, "lost")) == []
    assert worker.formed is not None


def test_damage_found_while_generations_change_is_reported_to_the_next(worker):
    """A root that planned before it heard of it would never have the copy fetched again."""
    worker.slots.begin(0, 3)
    worker.slots.seal(
        m.Holding(rank=0, ticket=3, step=9, home=0, world_size=1, size_bytes=1, digest="")
    )
    worker.receive(m.Broken(1, "lost"))
    worker.damaged(0, 3, "checksum")
    dropped = ToRootAgent(m.Dropped(2, 0, 3, "checksum"))
    assert dropped in worker.receive(m.Formed(2, 0, 1, "a:1", m.Resume(9, 3)))


def test_the_root_hears_if_a_rank_waits_for_a_copy_that_is_damaged(worker):
    """Found by the scrub it may wait for the next commit; a rank that asks for it may not."""
    worker.slots.begin(0, 3)
    worker.slots.seal(
        m.Holding(rank=0, ticket=3, step=9, home=0, world_size=1, size_bytes=1, digest="")
    )
    worker.receive(m.Resolve(1, 3, 9, committed=True))
    found = m.Dropped(1, 0, 3, "checksum")
    assert worker.found_damaged(0, 3, "checksum") == [ToRootAgent(found)]
    asked = m.Dropped(1, 0, 3, "checksum", is_awaited=True)
    assert worker.restore(0) == [ToRootAgent(asked)]


def test_slots_of_a_former_place_are_given_back_with_the_first_commit_in_the_new_one():
    """Not with that of the step resumed: by then not every rank has said what it needs."""
    worker = Worker(BookkeptSlots(2))
    worker.receive(m.Formed(1, 0, 2, "a:1", None))
    worker.attach(0, 2, 10)
    worker.receive(m.Reserve(1, 1, 10))
    worker.receive(m.Formed(2, 1, 2, "a:1", m.Resume(5, 1)))
    worker.receive(m.Resolve(2, 1, 5, committed=True))
    assert worker.slots.tables.keys() == {0, 1}
    worker.attach(1, 2, 10)
    worker.receive(m.Reserve(2, 2, 10))
    worker.receive(m.Resolve(2, 1_000_001, 6, committed=True))
    assert worker.slots.tables.keys() == {1, 2}


def test_a_slot_that_is_read_no_more_is_granted_at_once():
    """The root says nothing while its ticket is open: a slow reader would end all checkpoints."""
    slots = InMemoryCheckpoint(2)
    worker = Worker(slots)
    worker.receive(m.Formed(1, 0, 1, "a:1", None))
    worker.attach(0, 1, 10)
    for ticket in (1, 2):
        worker.receive(m.Ticket(1, ticket, 0))
        data = slots.slot(0, slots.find(0, ticket)).buffer[:10]
        slots.seal(Seal.of(data, rank=0, ticket=ticket, step=ticket, home=0, world_size=1))
        if ticket == 1:
            reading = slots.pinned(0, 1)
            reading.__enter__()
        worker.receive(m.Resolve(1, ticket, ticket, committed=True))
    assert grants(worker.receive(m.Ticket(1, 3, 0))) == []
    unpinned = []
    slots.on_unpinned = lambda: unpinned.extend(worker.unpinned())
    reading.__exit__(None, None, None)
    assert grants(unpinned) == [3]


def test_a_rank_drains_what_it_has_resumed_before_it_attaches():
    """A peer's replica is drained by the peer."""
    worker = Worker(BookkeptSlots(2))
    worker.receive(m.Formed(2, 1, 2, "a:1", m.Resume(5, 1)))
    for rank, home in ((0, 0), (1, 1)):
        worker.slots.reserve(rank, 10)
        worker.slots.begin(rank, 1)
        worker.slots.seal(m.Holding(rank, 1, 5, home, 2, 10, "d"))
    drains = [a for a in worker.receive(m.Drain(2, 1, 5, 2, "")) if isinstance(a, StartDrain)]
    assert [drain.ranks for drain in drains] == [(1,)]
