"""A new root goes on with the running generation: real workers tell it what they do."""

import pytest

from twinckpt.core import messages as m
from twinckpt.core import worker_actions as act
from twinckpt.core.adoption import GenerationRecord
from twinckpt.core.root import Log, Root, RootConfig, Send
from twinckpt.core.worker import Worker
from twinckpt.simulation.store import BookkeptSlots

NAMES = "abc"
SIZE = len(NAMES)


def address(name):
    return m.Address(name, "127.0.0.1", 1)


class Job:
    """Three workers with a rank each, and the root of the moment; messages arrive at once.

    `deaf` workers get nothing more from the root.
    """

    def __init__(self, **config):
        self.config = RootConfig(**config)
        self.workers = {name: Worker(BookkeptSlots(2)) for name in NAMES}
        self.root = Root(self.config)
        self.deaf = set()
        self.now_s = 0.0
        self.events = []
        self.told = []
        self.sent = []
        for name in NAMES:
            self.tell(name, m.Hello(address(name), 0))
            self.tell(name, m.Join(0, f"{name}:1", None, SIZE, SIZE))
        for rank, name in enumerate(NAMES):
            self.act(name, self.workers[name].attach(rank, SIZE, 10))

    def tell(self, name, message):
        self.carry_out(self.root.receive(name, message, self.now_s))

    def carry_out(self, actions):
        for action in actions:
            if isinstance(action, Log):
                self.events.append((action.event, action.fields))
            elif isinstance(action, Send) and action.machine not in self.deaf:
                self.sent.append((action.machine, action.message))
                self.act(action.machine, self.workers[action.machine].receive(action.message))

    def act(self, name, actions):
        """Carry out what a worker decided; a copy that it starts to fetch is there at once."""
        for action in actions:
            match action:
                case act.ToRootAgent(message):
                    self.tell(name, message)
                case act.StartFetch(_, rank, ticket):
                    source = self.workers[action.sources[0].machine]
                    holding = source.slots.holding(rank, ticket)
                    self.workers[name].slots.seal(holding)
                    self.act(name, self.workers[name].fetched(action, holding))
                case _:
                    self.told.append((name, action))

    def stage(self, name, step, ticket=None):
        """The rank of a machine fills the slot of its newest ticket."""
        rank = NAMES.index(name)
        worker = self.workers[name]
        ticket = ticket or max(state.ticket for state in worker.slots.tables[rank].slots)
        holding = m.Holding(rank, ticket, step, rank, SIZE, 10, f"{rank}/{ticket}")
        worker.slots.seal(holding)
        self.act(name, worker.staged(holding))

    def replace_root(self, record=None):
        """The root is gone; another one begins with what it left."""
        left = record or self.root.record
        self.root = Root(self.config, 0, left, self.now_s)
        self.deaf = set()
        self.events.clear()
        self.told.clear()

    def reconnect(self, name):
        worker = self.workers[name]
        held = tuple(worker.slots.holdings())
        hello = m.Hello(address(name), worker.generation, held, running=worker.running())
        self.tell(name, hello)
        for report in worker.unheard():
            self.tell(name, report)

    def names(self):
        return [event for event, _ in self.events if event != "machine_joined"]

    def take_over(self):
        self.replace_root()
        for name in NAMES:
            self.reconnect(name)


@pytest.fixture
def job():
    return Job()


def test_a_generation_goes_on_under_a_new_root(job):
    """Checkpoints commit, and nobody is told to stop."""
    job.take_over()
    assert job.names() == ["generation_adopted"]
    for name in NAMES:
        job.stage(name, step=5)
    assert job.names() == ["generation_adopted", "committed"]
    assert job.root.record == GenerationRecord(1, tuple(NAMES))
    assert not any(isinstance(action, act.BreakGeneration) for _, action in job.told)


def test_nothing_is_decided_before_all_are_back(job):
    """The missing machine may know better."""
    job.replace_root()
    for name in "ab":
        job.reconnect(name)
        job.stage(name, step=5)
    assert job.root.state == "adopting"
    assert job.names() == []
    job.reconnect("c")
    job.stage("c", step=5)
    assert job.names() == ["generation_adopted", "committed"]


def test_a_commit_that_one_machine_was_told_of_is_one_for_all(job):
    """It has freed the slot of the step before."""
    job.stage("a", step=5)
    job.stage("b", step=5)
    job.deaf = {"b", "c"}
    job.stage("c", step=5)
    assert [job.workers[name].running().committed_step for name in NAMES] == [5, 0, 0]
    job.take_over()
    assert job.root.commits.committed_step == 5
    resolved = [name for name, a in job.told if isinstance(a, act.TellResolved) and a.committed]
    assert resolved == ["b", "c"]
    assert [job.workers[name].running().committed_step for name in NAMES] == [5, 5, 5]


def test_a_commit_that_nobody_was_told_of_is_decided_again(job):
    """As before: all copies are there."""
    job.stage("a", step=5)
    job.stage("b", step=5)
    job.stage("c", step=5)
    for worker in job.workers.values():
        worker._now.committed_ticket = 0
        worker._now.hear(1)
    job.take_over()
    assert job.names() == ["generation_adopted", "committed"]


def test_a_ticket_that_did_not_reach_all_is_given_up(job):
    """Ranks that hear of it later would use it at another step."""
    newest = job.root.commits.undecided()[-1]
    job.workers["c"]._now.undecided_tickets.discard(newest)
    job.take_over()
    assert job.names() == ["generation_adopted", "abandoned"]
    assert job.root.commits.undecided() == [newest + 1]


def test_a_ticket_that_was_abandoned_anywhere_stays_abandoned(job):
    """And its number is never used again."""
    ticket = job.root.commits.undecided()[-1]
    job.workers["a"].receive(m.Resolve(1, ticket, 0, committed=False))
    job.take_over()
    assert job.root.commits.undecided() == [ticket + 1]
    for name in NAMES:
        assert job.workers[name].slots.find(NAMES.index(name), ticket) is None


def test_a_copy_whose_fetch_was_lost_with_the_root_is_fetched(job):
    """Otherwise the step would never commit."""
    job.deaf = set(NAMES)
    for name in NAMES:
        job.stage(name, step=5)
    job.take_over()
    assert job.names() == ["generation_adopted", "committed"]


def test_slots_whose_reservation_was_lost_with_the_root_are_reserved(job):
    """Tickets begin once they are there."""
    job.deaf = set(NAMES)
    job.act("a", job.workers["a"].attach(0, SIZE, 20))
    job.take_over()
    assert job.workers["b"].running().reserved[0] == m.Reserved(1, 0, 20)
    assert job.root.commits.undecided()


def test_a_rank_lost_while_there_was_no_root_ends_the_generation(job):
    """The worker says it again."""
    job.replace_root()
    job.workers["b"].rank_lost(1, exit_code=-9)
    for name in NAMES:
        job.reconnect(name)
    assert job.names() == ["generation_adopted", "rank_lost", "generation_broken"]
    assert {name for name, a in job.told if isinstance(a, act.BreakGeneration)} == set(NAMES)


def test_a_machine_that_does_not_come_back_is_lost(job):
    """After the time in which a silent one would be."""
    job.replace_root()
    for name in "ab":
        job.reconnect(name)
    job.now_s = 0.9
    job.carry_out(job.root.tick(job.now_s))
    assert job.names() == []
    job.now_s = 1.1
    for name in "ab":
        job.tell(name, m.Heartbeat())
    job.carry_out(job.root.tick(job.now_s))
    assert job.names() == ["machine_lost", "generation_broken"]
    assert job.events[-2][1]["index"] == 2
    assert {name for name, a in job.told if isinstance(a, act.BreakGeneration)} == {"a", "b"}


def test_a_machine_that_comes_back_twice_is_counted_once(job):
    """Its connection broke once more."""
    job.replace_root()
    job.reconnect("a")
    job.carry_out(job.root.connection_lost("a", 0.1))
    job.reconnect("b")
    job.reconnect("c")
    assert "generation_adopted" not in job.names()
    job.reconnect("a")
    assert "generation_adopted" in job.names()
    assert "generation_broken" not in job.names()


def test_a_machine_that_has_stopped_ends_the_generation(job):
    """Its agent was started anew, or it was told by the former root."""
    job.workers["b"].receive(m.Broken(1, "a rank was lost"))
    job.replace_root()
    for name in "ab":
        job.reconnect(name)
    assert job.names() == ["generation_broken"]
    job.reconnect("c")
    assert {name for name, a in job.told if isinstance(a, act.BreakGeneration)} == {"a", "c"}


def test_a_root_that_knows_of_no_generation_ends_what_runs(job):
    """Its predecessor could leave no record: without one nobody knows who belongs to it."""
    job.root = Root(job.config)
    for name in NAMES:
        job.reconnect(name)
    assert all(worker.formed is None for worker in job.workers.values())
    assert job.root.generation == 1


def test_a_record_of_an_older_generation_is_not_taken_over(job):
    """The former root died before it could leave the newer one."""
    job.replace_root(GenerationRecord(0, tuple(NAMES)))
    for name in NAMES:
        job.reconnect(name)
    assert "generation_adopted" not in job.names()
    assert job.root.generation == 1


def test_a_spare_that_waits_has_no_part_in_the_generation(job):
    """It neither ends it nor is waited for, and is told so."""
    job.workers["z"] = Worker(BookkeptSlots(2))
    job.replace_root()
    job.tell("z", m.Hello(address("z"), 0))
    job.tell("z", m.Join(0, "z:1", None, SIZE, SIZE))
    for name in NAMES:
        job.reconnect(name)
    assert job.names() == ["generation_adopted"]
    assert "z" in job.root.membership.waiting
    assert job.sent[-1] == ("z", m.Spare(1))


def test_what_nobody_holds_any_more_ends_the_generation():
    """A rank has yet to restore it."""
    resume = m.Resume(5, 1)
    record = GenerationRecord(2, tuple(NAMES), resume)
    root = Root(RootConfig(), 0, record)
    for rank, name in enumerate(NAMES):
        held = (m.Holding(0, 1, 5, 0, SIZE, 10, "d"),) if rank == 0 else ()
        actions = root.receive(name, m.Hello(address(name), 2, held, running=m.Running()), 0.0)
    reasons = [a.fields.get("reason") for a in actions if isinstance(a, Log)]
    assert "no intact copy of rank 1 at ticket 1 is left" in reasons
