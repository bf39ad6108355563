"""The root's decisions, driven by events alone: no sockets, no clock."""

import pytest

from twinckpt.core import messages as m
from twinckpt.core.drains import SLOW_S
from twinckpt.core.recovery import Recovery
from twinckpt.core.root import Log, Root, RootConfig, Send
from twinckpt.errors import ConfigurationError


def address(machine):
    return m.Address(machine, "127.0.0.1", 1)


class Cluster:
    """A root and the bookkeeping of who was told what."""

    def __init__(self, num_machines=3, **config):
        self.root = Root(RootConfig(**config))
        self.now_s = 0.0
        self.sent = []
        self.events = []
        self.logged = []
        self.num_machines = num_machines

    def act(self, actions):
        self.sent = [a for a in actions if isinstance(a, Send)]
        self.logged = [(a.event, a.fields) for a in actions if isinstance(a, Log)]
        self.events = [event for event, _ in self.logged]
        return self

    def tell(self, machine, message):
        return self.act(self.root.receive(machine, message, self.now_s))

    def connect(self, machine, inventory=(), drained_steps=()):
        return self.tell(machine, m.Hello(address(machine), 0, inventory, drained_steps))

    def join(self, machine, num_ranks=0):
        size = self.num_machines
        return self.tell(machine, m.Join(0, f"{machine}:1", None, size, size, num_ranks))

    def form(self):
        for machine in "abc"[: self.num_machines]:
            self.connect(machine)
            self.join(machine)
        return self

    def attach_all(self, slot_bytes=10):
        generation = self.root.generation
        for rank, machine in enumerate(self.root.places):
            self.tell(machine, m.Attached(generation, rank, self.num_machines, slot_bytes))
        for rank in range(self.num_machines):
            holder = self.root.places[(rank + 1) % self.num_machines]
            self.tell(holder, m.Reserved(generation, rank, slot_bytes))
        return self

    def hold(self, machine, rank, ticket, step):
        holding = m.Holding(rank, ticket, step, rank, self.num_machines, 10, "d")
        return self.tell(machine, m.Holds(self.root.generation, holding))

    def commit(self, ticket, step):
        for rank, machine in enumerate(list(self.root.places)):
            self.hold(machine, rank, ticket, step)
            self.hold(self.root.places[(rank + 1) % self.num_machines], rank, ticket, step)
        return self

    def wait(self, duration_s):
        """Let time pass; all that are connected are heard."""
        self.now_s += duration_s
        for machine in self.root.membership.machines:
            self.root.receive(machine, m.Heartbeat(), self.now_s)
        return self.act(self.root.tick(self.now_s))

    def messages(self, kind):
        return [(s.machine, s.message) for s in self.sent if isinstance(s.message, kind)]


def test_a_generation_forms_once_all_machines_have_joined():
    """And each is told its place."""
    cluster = Cluster()
    for machine in "ab":
        cluster.connect(machine).join(machine)
    assert cluster.messages(m.Formed) == []
    cluster.connect("c").join("c")
    assert [(to, f.index, f.generation) for to, f in cluster.messages(m.Formed)] == [
        ("a", 0, 1),
        ("b", 1, 1),
        ("c", 2, 1),
    ]


def test_checkpoints_begin_when_every_replica_has_its_slots():
    """No ticket before the last reservation."""
    cluster = Cluster().form()
    for rank, machine in enumerate("abc"):
        cluster.tell(machine, m.Attached(1, rank, 3, 10))
        assert cluster.messages(m.Ticket) == []
    cluster.tell("b", m.Reserved(1, 0, 10))
    cluster.tell("c", m.Reserved(1, 1, 10))
    assert cluster.messages(m.Ticket) == []
    cluster.tell("a", m.Reserved(1, 2, 10))
    assert [to for to, _ in cluster.messages(m.Ticket)] == ["a", "b", "c"]


def test_a_sealed_shard_is_fetched_by_its_replica():
    """From the machine that staged it."""
    cluster = Cluster().form().attach_all()
    cluster.hold("a", rank=0, ticket=1, step=5)
    assert cluster.messages(m.Fetch) == [("b", m.Fetch(1, 0, 1, 10, (address("a"),)))]


def test_the_home_of_a_shard_learns_when_it_is_replicated():
    """Before the step commits, which waits for all shards."""
    cluster = Cluster().form().attach_all()
    cluster.hold("a", rank=0, ticket=1, step=5)
    assert cluster.messages(m.Replicated) == []
    cluster.hold("b", rank=0, ticket=1, step=5)
    assert cluster.messages(m.Replicated) == [("a", m.Replicated(1, 0, 1))]
    assert cluster.messages(m.Resolve) == []


def test_a_step_commits_when_the_last_replica_is_sealed():
    """Not earlier; then the next ticket follows."""
    cluster = Cluster().form().attach_all()
    copies = [("a", 0), ("b", 0), ("b", 1), ("c", 1), ("c", 2), ("a", 2)]
    for machine, rank in copies[:-1]:
        cluster.hold(machine, rank, ticket=1, step=5)
        assert "committed" not in cluster.events
    machine, rank = copies[-1]
    cluster.hold(machine, rank, ticket=1, step=5)
    assert "committed" in cluster.events
    assert {t.ticket for _, t in cluster.messages(m.Ticket)} == {2}


def test_ranks_at_different_steps_abandon_the_ticket():
    """Never a mixture of two steps."""
    cluster = Cluster().form().attach_all()
    cluster.hold("a", rank=0, ticket=1, step=5)
    cluster.hold("b", rank=1, ticket=1, step=6)
    assert "abandoned" in cluster.events
    assert {t.not_before_step for _, t in cluster.messages(m.Ticket)} == {8}


def test_a_lost_machine_breaks_the_generation():
    """The survivors are told to join again."""
    cluster = Cluster().form()
    cluster.act(cluster.root.connection_lost("b", 1.0))
    assert cluster.events == ["machine_lost", "generation_broken"]
    assert [to for to, _ in cluster.messages(m.Broken)] == ["a", "c"]


def test_a_silent_machine_is_lost_after_the_timeout_and_not_before():
    """Heartbeats are judged by the root's clock alone."""
    cluster = Cluster(heartbeat_timeout_s=1.0).form()
    for machine in "ac":
        cluster.act(cluster.root.receive(machine, m.Heartbeat(), 0.9))
    assert cluster.act(cluster.root.tick(1.0)).events == []
    assert "machine_lost" in cluster.act(cluster.root.tick(1.01)).events


@pytest.mark.parametrize("lost", ["a", "b", "c"])
def test_after_the_loss_of_a_machine_the_newest_committed_step_is_resumed(lost):
    """The newcomer takes the lost one's place and fetches what belongs there."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    index = cluster.root.places.index(lost)
    cluster.act(cluster.root.connection_lost(lost, 1.0))
    for machine in cluster.root.places:
        if machine != lost:
            cluster.join(machine)
    cluster.connect("new").join("new")
    formed = cluster.messages(m.Formed)
    assert {f.resume.step for _, f in formed} == {5}
    assert [f.index for to, f in formed if to == "new"] == [index]
    fetches = cluster.messages(m.Fetch)
    assert {to for to, _ in fetches} == {"new"}
    assert [f.rank for _, f in fetches] == [index, (index - 1) % 3]


def test_when_a_replica_group_is_gone_the_newest_drained_step_is_resumed():
    """Both holders of a shard were lost."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    for machine in "ab":
        cluster.act(cluster.root.connection_lost(machine, 0.0))
    cluster.join("c")
    for machine in ("x", "y"):
        cluster.connect(machine, drained_steps=(1, 3)).join(machine)
    assert cluster.messages(m.Formed) == []  # one that was cut off could come back
    cluster.wait(1.1)
    recoveries = [f.resume for _, f in cluster.messages(m.Formed)]
    assert {(r.step, r.ticket) for r in recoveries} == {(3, 0)}


def test_messages_of_a_former_generation_change_nothing():
    """A machine that returns from the dead is fenced."""
    cluster = Cluster().form().attach_all()
    stale = m.Holding(0, 1, 5, 0, 3, 10, "d")
    cluster.tell("a", m.Holds(0, stale))
    assert cluster.sent == []


def test_the_last_intact_copy_gone_means_an_older_step():
    """Damage found while restoring: everyone starts over from what is intact."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.act(cluster.root.connection_lost("b", 1.0))
    for machine in "ac":
        cluster.join(machine)
    cluster.connect("new").join("new")
    cluster.tell("a", m.Dropped(2, 0, 1, "bits flipped"))
    assert "generation_broken" in cluster.events


@pytest.mark.parametrize("is_awaited", [False, True])
def test_the_last_copy_of_a_running_generation_may_go_unless_its_rank_wants_it(is_awaited):
    """The next commit makes new ones; a rank that restores would wait for ever."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.tell("b", m.Dropped(1, 0, 1, "bits flipped"))
    cluster.tell("a", m.Dropped(1, 0, 1, "bits flipped", ("b",), is_awaited))
    assert ("generation_broken" in cluster.events) == is_awaited


def test_a_damaged_copy_is_fetched_again_from_its_twin():
    """One good copy is enough."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.tell("a", m.Dropped(1, 0, 1, "bits flipped"))
    assert cluster.messages(m.Fetch) == [("a", m.Fetch(1, 0, 1, 10, (address("b"),)))]


def issued(cluster):
    """Return which tickets the machines have just been given."""
    return {ticket.ticket for _, ticket in cluster.messages(m.Ticket)}


def test_a_step_that_is_drained_keeps_its_slot_when_the_next_one_commits():
    """What is copied to disk must not be overwritten."""
    cluster = Cluster(drain_every_commits=1).form().attach_all().commit(1, step=5)
    assert [to for to, _ in cluster.messages(m.Drain)] == ["a", "b", "c"]
    assert issued(cluster) == {2}
    cluster.commit(2, step=6)
    assert "committed" in cluster.events
    assert issued(cluster) == set()
    for machine in "abc":
        assert issued(cluster) == set()
        cluster.tell(machine, m.Drained(1, 1, ok=True))
    assert issued(cluster) == {3}


def test_with_a_third_slot_checkpoints_go_on_while_one_is_drained():
    """However long that takes."""
    cluster = Cluster(drain_every_commits=1, num_slots=3).form().attach_all().commit(1, step=5)
    assert issued(cluster) == {3}
    cluster.commit(2, step=6)
    assert issued(cluster) == set()
    for ticket in range(3, 9):
        assert issued(cluster.commit(ticket, step=4 + ticket)) == {ticket + 1}
        assert cluster.messages(m.Drain) == []


@pytest.mark.parametrize("ok", [True, False])
def test_a_step_that_was_due_while_another_one_was_drained_is_drained_next(ok):
    """The newest of them: or a job that ends would leave an older one behind."""
    cluster = Cluster(drain_every_commits=2, num_slots=3).form().attach_all()
    for ticket in range(1, 8):
        cluster.commit(ticket, step=4 + ticket)
    for machine in "abc":
        assert cluster.messages(m.Drain) == []
        cluster.tell(machine, m.Drained(1, 2, ok=ok))
    assert {drain.step for _, drain in cluster.messages(m.Drain)} == {11}
    for machine in "abc":
        cluster.tell(machine, m.Drained(1, 7, ok=ok))
        assert cluster.messages(m.Drain) == []


@pytest.mark.parametrize("ok", [True, False])
def test_the_last_step_of_a_job_is_drained_though_it_is_not_due(ok):
    """All that have finished are answered when it is in storage, or could not be written."""
    cluster = Cluster(drain_every_commits=1000).form().attach_all().commit(1, step=5)
    cluster.tell("b", m.Finished(1, 1))
    assert {drain.step for _, drain in cluster.messages(m.Drain)} == {5}
    for machine in "abc":
        assert cluster.messages(m.NothingToDrain) == []
        assert cluster.tell("c", m.Finished(1, 2)).sent == []
        cluster.tell(machine, m.Drained(1, 1, ok=ok))
    newest_step = 5 if ok else None
    answers = [(to, m.NothingToDrain(1, rank, newest_step)) for rank, to in ((1, "b"), (2, "c"))]
    assert cluster.messages(m.NothingToDrain) == answers
    cluster.tell("a", m.Finished(1, 0))
    assert cluster.messages(m.Drain) == []
    assert cluster.messages(m.NothingToDrain) == [("a", m.NothingToDrain(1, 0, newest_step))]


def test_a_last_step_that_was_resumed_is_drained_though_nothing_was_saved_since():
    """A rank was lost while it waited for that; nobody attaches any more."""
    cluster = Cluster(drain_every_commits=1000).form().attach_all().commit(1, step=5)
    cluster.tell("b", m.Finished(1, 1))
    cluster.tell("b", m.RankLost(1, 1, -9))
    for machine in "abc":
        cluster.join(machine)
    cluster.tell("a", m.Finished(2, 0))
    assert [drain for _, drain in cluster.messages(m.Drain)] == 3 * [
        m.Drain(2, 1, 5, 3, cluster.root.copies.digest(1))
    ]
    assert cluster.messages(m.NothingToDrain) == []
    for machine in "abc":
        cluster.tell(machine, m.Drained(2, 1, ok=True))
    assert cluster.messages(m.NothingToDrain) == [("a", m.NothingToDrain(2, 0, 5))]


@pytest.mark.parametrize("goes_on", [True, False])
def test_a_job_that_ends_does_not_grow(goes_on):
    """It would stop what a program does after its training; one may begin another, though."""
    cluster = Cluster(num_machines=2, drain_every_commits=1000)
    for machine in "abc":
        cluster.connect(machine)
    for machine in "ab":
        cluster.tell(machine, m.Join(0, f"{machine}:1", None, 2, 3))
    cluster.wait(10.0)
    cluster.attach_all().commit(1, step=5)
    cluster.tell("a", m.Finished(1, 0))
    cluster.tell("c", m.Join(0, "c:1", None, 2, 3))
    for machine in "ab":
        cluster.tell(machine, m.Drained(1, 1, ok=True))
    assert cluster.messages(m.NothingToDrain) == [("a", m.NothingToDrain(1, 0, 5))]
    if goes_on:
        cluster.tell("a", m.Attached(1, 0, 2, 10))
    cluster.tell("a", m.Heartbeat())
    assert cluster.root.running != goes_on


def test_a_rank_that_finishes_when_a_machine_has_left_need_not_wait():
    """Without all machines nothing more is drained."""
    cluster = Cluster(drain_every_commits=1).form().attach_all().commit(1, step=5)
    for machine in "abc":
        cluster.tell(machine, m.Drained(1, 1, ok=True))
    cluster.tell("b", m.Leave())
    cluster.tell("a", m.Finished(1, 0))
    assert cluster.messages(m.NothingToDrain) == [("a", m.NothingToDrain(1, 0, 5))]


def test_a_step_that_is_being_drained_when_the_job_ends_is_followed_by_the_last_one():
    """In storage is what was committed last."""
    cluster = Cluster(drain_every_commits=2).form().attach_all()
    for ticket in range(1, 4):
        cluster.commit(ticket, step=4 + ticket)
    assert cluster.tell("b", m.Finished(1, 1)).sent == []
    for machine in "abc":
        cluster.tell(machine, m.Drained(1, 2, ok=True))
    assert cluster.messages(m.NothingToDrain) == []
    assert {drain.step for _, drain in cluster.messages(m.Drain)} == {7}


@pytest.mark.parametrize("commits", [0, 1])
def test_a_job_without_storage_has_nothing_to_wait_for(commits):
    """Nor has one that has committed nothing."""
    cluster = Cluster(drain_every_commits=1 - commits).form().attach_all()
    for ticket in range(1, commits + 1):
        cluster.commit(ticket, step=ticket)
    cluster.tell("a", m.Finished(1, 0))
    assert cluster.messages(m.Drain) == []
    assert cluster.messages(m.NothingToDrain) == [("a", m.NothingToDrain(1, 0, None))]


def test_a_drain_that_takes_long_is_told_of_once():
    """Storage that hangs keeps a slot."""
    cluster = Cluster(drain_every_commits=1).form().attach_all().commit(1, step=5)
    told = [cluster.wait(SLOW_S).events.count("drain_is_slow") for _ in range(4)]
    assert sum(told) == 1


def test_tickets_begin_again_after_a_rank_attached_anew_needs_larger_slots():
    """The replica's smaller slot does not count."""
    cluster = Cluster().form().attach_all(slot_bytes=10)
    cluster.tell("a", m.Attached(1, 0, 3, 20))
    assert cluster.messages(m.Reserve) == [("b", m.Reserve(1, 0, 20))]
    cluster.tell("b", m.Reserved(1, 0, 10))
    assert cluster.messages(m.Ticket) == []
    cluster.tell("b", m.Reserved(1, 0, 20))
    assert len(cluster.messages(m.Ticket)) == 3


def test_a_peer_without_room_is_made_known_to_the_rank_whose_replica_it_was():
    """Not only to the peer's own ranks, which have no part in it."""
    cluster = Cluster().form()
    cluster.tell("a", m.Attached(1, 0, 3, 10))
    cluster.tell("b", m.CannotReserve(1, 0, "10 GiB are needed, 1 GiB is there"))
    told = m.CannotReserve(1, 0, "machine 1: 10 GiB are needed, 1 GiB is there")
    assert cluster.messages(m.CannotReserve) == [("a", told)]


@pytest.mark.parametrize("size", range(1, 9))
@pytest.mark.parametrize("replicas", [1, 2, 3])
def test_groups_that_do_not_come_out_even_still_form(size, replicas):
    """The last machines make a ring, as in mixed placement."""
    root = Root(RootConfig(placement="group", replicas=replicas))
    for index in range(size):
        root.receive(f"m{index}", m.Hello(m.Address(f"m{index}", "h", 1), 0), 0.0)
        root.receive(f"m{index}", m.Join(0, "h:1", None, size, size), 0.0)
    assert root.running


@pytest.mark.parametrize(
    "wrong", [{"placement": "star"}, {"replicas": 0}, {"num_slots": 1}], ids=str
)
def test_impossible_settings_are_refused_at_once(wrong):
    """Not when the first generation forms."""
    with pytest.raises(ConfigurationError, match=f"{next(iter(wrong))}="):
        RootConfig(**wrong)


def test_a_join_sent_before_the_generation_formed_does_not_break_it():
    """It was told twice."""
    cluster = Cluster().form()
    assert cluster.join("a").events == []
    assert cluster.root.running


def test_a_machine_of_a_later_generation_ends_this_one():
    """Another root went further: its machines would ignore a smaller number."""
    cluster = Cluster().form()
    cluster.tell("z", m.Hello(m.Address("z", "127.0.0.1", 1), 7))
    assert {broken.generation for _, broken in cluster.messages(m.Broken)} == {1}
    for machine in "abc":
        cluster.join(machine)
    assert {formed.generation for _, formed in cluster.messages(m.Formed)} == {8}


LAST = 2**64 - 1


@pytest.mark.parametrize(
    "beyond",
    [
        m.Hello(address("x"), LAST),
        m.Hello(address("x"), 1, drained_ticket=LAST),
        m.Hello(address("x"), 1, inventory=(m.Holding(0, LAST, 1, 0, 1, 1, "d"),)),
        m.Hello(address("x"), 1, running=m.Running(newest_ticket=LAST)),
    ],
)
def test_a_machine_that_would_use_up_all_numbers_is_refused(beyond):
    """No message can name what would come after them: the job went on, and never committed."""
    cluster = Cluster().form().attach_all()
    cluster.tell("x", beyond)
    assert [to for to, _ in cluster.messages(m.Refused)] == ["x"]
    assert cluster.root.running
    assert "committed" in cluster.commit(ticket=1, step=5).events
    assert all(t.ticket < 10 for _, t in cluster.messages(m.Ticket))


@pytest.mark.parametrize("home", [-LAST, -1, 3, LAST])
def test_a_copy_of_a_machine_that_cannot_be_leaves_no_trace(home):
    """The root could neither count nor forget it, and used to fail the others for it."""
    cluster = Cluster().form().attach_all()
    cluster.connect(
        "x", [m.Holding(0, 1, 5, home, 3, 10, "d"), m.Holding(1, 1, 5, home, 3, 10, "d")]
    )
    cluster.act(cluster.root.connection_lost("x", cluster.now_s))
    assert "machine_lost" in cluster.events
    assert "committed" in cluster.commit(ticket=1, step=5).events
    assert "committed" in cluster.commit(ticket=2, step=6).events


def test_a_spare_that_waited_since_before_the_drain_resumes_from_it():
    """The root remembers what was drained; nobody has to connect anew to tell it."""
    cluster = Cluster(drain_every_commits=1).form()
    for machine in ("x", "y", "z"):
        cluster.connect(machine).join(machine)
    cluster.attach_all().commit(1, step=5)
    for machine in "abc":
        cluster.tell(machine, m.Drained(1, 1, ok=True))
    for machine in "abc":
        cluster.act(cluster.root.connection_lost(machine, 0.5))
    cluster.wait(1.6)
    recoveries = [formed.resume for _, formed in cluster.messages(m.Formed)]
    assert recoveries == [m.Resume(5)] * 3


def test_a_drain_that_failed_on_one_machine_is_not_resumed_from():
    """Its shards are missing."""
    cluster = Cluster(drain_every_commits=1).form().attach_all().commit(1, step=5)
    for machine in "abc":
        cluster.tell(machine, m.Drained(1, 1, ok=machine != "b"))
    assert cluster.root.drains.newest_step is None


def test_spares_do_not_take_the_places_of_machines_that_still_stop_their_ranks():
    """What they hold would be given up, though they live."""
    cluster = Cluster().form()
    for machine in ("x", "y", "z"):
        cluster.connect(machine).join(machine)
    cluster.attach_all().commit(1, step=5)
    cluster.act(cluster.root.connection_lost("a", 0.5))
    assert cluster.messages(m.Formed) == []
    for machine in "bc":
        cluster.join(machine)
    assert [to for to, _ in cluster.messages(m.Formed)] == ["x", "b", "c"]


def test_machines_that_were_cut_off_are_given_time_to_come_back():
    """All links broke for a moment; the spares alone know nothing."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    for machine in ("x", "y", "z"):
        cluster.connect(machine).join(machine)
    for machine in "abc":
        cluster.act(cluster.root.connection_lost(machine, 0.1))
    assert cluster.messages(m.Formed) == []
    copies = tuple(m.Holding(rank, 1, 5, rank, 3, 10, "d") for rank in range(3))
    for machine, inventory in (("a", (copies[0], copies[2])), ("b", copies[:2])):
        cluster.connect(machine, inventory).join(machine)
    assert {f.resume.step for _, f in cluster.messages(m.Formed)} == {5}


def elastic(machine, inventory=(), drained_steps=()):
    """A cluster of two to three machines, of which `machine` is the only one connected."""
    cluster = Cluster(last_call_s=1.5)
    connect_elastic(cluster, machine, inventory, drained_steps)
    return cluster


def connect_elastic(cluster, machine, inventory=(), drained_steps=()):
    cluster.connect(machine, inventory, drained_steps)
    cluster.tell(machine, m.Join(0, f"{machine}:1", None, 2, 3))


THREE_SHARDS = tuple(m.Holding(rank, 1, 5, rank, 3, 10, "d") for rank in range(3))


def test_fewer_machines_wait_rather_than_begin_again_from_nothing():
    """The copies are of three machines; with two they cannot be resumed."""
    cluster = elastic("a", THREE_SHARDS)
    connect_elastic(cluster, "b")
    assert cluster.wait(2.0).sent == []
    assert cluster.events == ["waiting_for_machines"]
    assert cluster.wait(2.0).events == []  # once is enough
    connect_elastic(cluster, "c")
    assert {f.resume.step for _, f in cluster.messages(m.Formed)} == {5}


def test_fewer_machines_resume_from_the_newest_drained_step():
    """Where there is one, nobody waits for a replacement that may never come."""
    cluster = elastic("a", THREE_SHARDS, drained_steps=(4,))
    connect_elastic(cluster, "b")
    cluster.wait(2.0)
    assert cluster.root.running
    assert cluster.root.current.recovery == Recovery(4)


FIRST_TICKET = 1


def two_of_three(**config):
    """A job of two to three machines that goes on with two, and has committed a step."""
    cluster = Cluster(2, last_call_s=1.5, **config)
    for machine in "ab":
        connect_elastic(cluster, machine)
    cluster.wait(2.0)
    cluster.attach_all().commit(FIRST_TICKET, 4)
    return cluster


def rejoin(cluster, machines="abc"):
    """Let machines whose generation ended join again; return what each is told of the next one."""
    generation = cluster.root.generation
    for machine in machines:
        cluster.tell(machine, m.Join(generation, f"{machine}:1", None, 2, 3))
    return [message for _, message in cluster.messages(m.Formed)]


def drained_by_all(cluster, ticket):
    for machine in "ab":
        cluster.tell(machine, m.Drained(cluster.root.generation, ticket, ok=True))
    return cluster


def test_a_job_grows_once_its_newest_commit_is_drained():
    """The next commit is drained at once, due or not; then nothing is lost by starting again."""
    cluster = two_of_three(drain_every_commits=1000)
    connect_elastic(cluster, "c")
    assert cluster.messages(m.Broken) == []
    cluster.commit(FIRST_TICKET + 1, 5)
    assert [drain.step for _, drain in cluster.messages(m.Drain)] == [5, 5]
    drained_by_all(cluster, FIRST_TICKET + 1)
    assert {name for name, _ in cluster.messages(m.Broken)} == {"a", "b"}
    formed = rejoin(cluster, "ab")
    assert {(f.num_machines, f.resume.step, f.resume.ticket) for f in formed} == {(3, 5, 0)}
    assert "steps_lost" not in cluster.events


def test_a_job_with_a_third_slot_grows_as_well():
    """What committed while a step was drained is drained next, and no ticket comes between."""
    cluster = two_of_three(drain_every_commits=1000, num_slots=3)
    connect_elastic(cluster, "c")
    cluster.commit(FIRST_TICKET + 1, 5)
    cluster.commit(FIRST_TICKET + 2, 6)
    assert cluster.messages(m.Ticket) == []
    drained_by_all(cluster, FIRST_TICKET + 1)
    assert cluster.messages(m.Broken) == []
    assert [drain.step for _, drain in cluster.messages(m.Drain)] == [6, 6]
    drained_by_all(cluster, FIRST_TICKET + 2)
    assert {f.resume.step for f in rejoin(cluster, "ab")} == {6}


def test_a_job_that_drains_nothing_stays_as_it_is():
    """To grow it would have to begin again; the machine that waits can still replace another."""
    cluster = two_of_three()
    connect_elastic(cluster, "c")
    for ticket in range(FIRST_TICKET + 1, FIRST_TICKET + 5):
        cluster.commit(ticket, ticket + 5)
        assert cluster.messages(m.Broken) == []
    cluster.act(cluster.root.connection_lost("b", cluster.now_s))
    assert {f.num_machines for f in rejoin(cluster, "a")} == {2}


def test_a_failure_does_not_make_a_job_grow_at_a_loss():
    """Memory has a newer step than storage, for as many machines as there were."""
    cluster = two_of_three(drain_every_commits=1000)
    connect_elastic(cluster, "c")
    cluster.tell("a", m.RankLost(cluster.root.generation, 0))
    formed = rejoin(cluster, "ab")
    assert {(f.num_machines, f.resume.step) for f in formed} == {(2, 4)}


def test_what_is_lost_with_a_replica_group_is_said():
    """How far the job goes back, and why."""
    cluster = Cluster(drain_every_commits=1).form().attach_all().commit(1, 4)
    for machine in "abc":
        cluster.tell(machine, m.Drained(cluster.root.generation, 1, ok=True))
    cluster.commit(2, 9)
    for machine in "bc":
        cluster.act(cluster.root.connection_lost(machine, 0.0))
    for machine in "xy":
        cluster.connect(machine).join(machine)
    cluster.join("a").wait(1.1)
    (lost,) = (fields for event, fields in cluster.logged if event == "steps_lost")
    assert (lost["committed_step"], lost["recover_step"], lost["lost_steps"]) == (9, 4, 5)


def test_a_machine_without_a_place_lends_its_copies():
    """It was cut off while the others went on; the only copies left are in its memory."""
    cluster = Cluster().form()
    for machine in "abc":
        cluster.act(cluster.root.connection_lost(machine, 0.0))
    for machine in "xyz":
        cluster.connect(machine).join(machine)
    cluster.wait(1.1)
    copies = tuple(m.Holding(rank, 1, 5, rank, 3, 10, "d") for rank in range(3))
    cluster.connect("a", copies)
    cluster.tell("x", m.RankLost(cluster.root.generation, 0))
    for machine in "xyz":
        cluster.join(machine)
    formed = [message for _, message in cluster.messages(m.Formed)]
    assert {message.resume.step for message in formed} == {5}
    assert {fetch.sources for _, fetch in cluster.messages(m.Fetch)} == {(address("a"),)}


def test_replicas_are_kept_in_different_failure_domains():
    """Machines next to each other share a rack; their shards go to the other one."""
    root = Root(RootConfig())
    for machine, domain in zip("abcd", ("r1", "r1", "r2", "r2"), strict=True):
        root.receive(machine, m.Hello(address(machine), 0, domain=domain), 0.0)
        root.receive(machine, m.Join(0, f"{machine}:1", None, 4, 4), 0.0)
    racks = [0, 0, 1, 1]
    assert all(racks[home] != racks[replica] for home, replica in root.current.holders)


def test_one_machine_of_unknown_domain_makes_all_unknown():
    """Nothing is promised about domains that nobody named: the plain ring."""
    root = Root(RootConfig())
    for machine, domain in zip("abcd", ("r1", "r1", "r2", ""), strict=True):
        root.receive(machine, m.Hello(address(machine), 0, domain=domain), 0.0)
        root.receive(machine, m.Join(0, f"{machine}:1", None, 4, 4), 0.0)
    assert [tuple(row) for row in root.current.holders] == [(0, 1), (1, 2), (2, 3), (3, 0)]


def test_a_copy_sealed_after_its_generation_has_ended_is_one_to_resume_from():
    """It was asked for; its sources die meanwhile, and nobody else has it."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.act(cluster.root.connection_lost("c", 0.0))
    for machine in "ab":
        cluster.join(machine)
    cluster.connect("d").join("d")
    fetches = {(to, fetch.rank) for to, fetch in cluster.messages(m.Fetch)}
    assert fetches == {("d", 1), ("d", 2)}
    cluster.act(cluster.root.connection_lost("b", 0.0))
    assert "generation_broken" in cluster.events
    holding = m.Holding(1, 1, 5, 1, 3, 10, "d")
    cluster.tell("d", m.Holds(2, holding))
    assert (cluster.root.copies.has("d", 1, 1), cluster.root.copies.has("b", 1, 1)) == (True, False)
    for machine in "ad":
        cluster.join(machine)
    cluster.connect("e").join("e")
    assert {f.resume and f.resume.step for _, f in cluster.messages(m.Formed)} == {5}


def test_a_copy_that_nobody_asked_for_is_not_believed_after_the_end():
    """It may be told a second time, long after it was dropped."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.act(cluster.root.connection_lost("c", 0.0))
    cluster.tell("a", m.Holds(1, m.Holding(1, 1, 5, 1, 3, 10, "d")))
    assert not cluster.root.copies.has("a", 1, 1)


def test_a_copy_under_way_while_its_machine_reconnects_is_one_to_resume_from():
    """Its inventory came too early to name it."""
    cluster = Cluster().form().attach_all().commit(1, step=5)
    cluster.act(cluster.root.connection_lost("c", 0.0))
    hello = m.Hello(address("c"), 1, fetching=((1, 1),))
    cluster.tell("c", hello)
    cluster.tell("c", m.Holds(1, m.Holding(1, 1, 5, 1, 3, 10, "d")))
    assert cluster.root.copies.has("c", 1, 1)


def test_what_makes_room_for_the_step_resumed_is_not_counted_on():
    """A machine that was away for long comes back with copies that nobody needs."""
    old = m.Holding(2, 1, 3, 2, 3, 10, "d")
    new = [m.Holding(rank, 2, 5, rank, 3, 10, "d") for rank in range(3)]
    cluster = Cluster()
    for machine, held in (("a", new), ("b", new), ("c", [old])):
        cluster.connect(machine, held).join(machine)
    assert ("c", 2) in {(to, fetch.rank) for to, fetch in cluster.messages(m.Fetch)}
    assert not cluster.root.copies.has("c", 2, 1)


def fail(cluster, **lost):
    """Have rank 1's own failure end the generation; return whether the job is given up."""
    generation = cluster.root.generation
    cluster.tell("b", m.RankLost(generation, 1, 1, **lost))
    is_final = {broken.is_final for _, broken in cluster.messages(m.Broken)}
    for machine in "abc":
        cluster.join(machine)
    return is_final == {True}


def test_three_failures_of_a_script_at_the_same_step_end_the_job():
    """Progress in between begins the count anew."""
    cluster = Cluster().form()
    assert [fail(cluster), fail(cluster)] == [False, False]
    ticket = cluster.attach_all().messages(m.Ticket)[0][1].ticket
    cluster.commit(ticket, step=7)
    assert [fail(cluster), fail(cluster), fail(cluster)] == [False, False, True]


def test_a_failure_that_was_the_last_one_allowed_ends_the_job():
    """The launcher counts, and says so."""
    assert fail(Cluster().form(), is_final=True)


def test_machines_with_different_numbers_of_ranks_are_all_refused():
    """None of them is more right than another; each hears what all have."""
    cluster = Cluster(3)
    for machine, num_ranks in (("a", 2), ("b", 1), ("c", 2)):
        cluster.connect(machine)
        cluster.join(machine, num_ranks)
    refused = cluster.messages(m.Refused)
    assert [machine for machine, _ in refused] == ["a", "b", "c"]
    assert "2 on a (127.0.0.1), 1 on b (127.0.0.1), 2 on c (127.0.0.1)" in refused[0][1].reason
    assert not cluster.root.running


def test_a_replacement_with_another_number_of_ranks_is_refused_alone():
    """What the others hold in memory waits for a machine that fits."""
    cluster = Cluster(2)
    for machine in "ab":
        cluster.connect(machine)
        cluster.join(machine, 2)
    assert cluster.root.running
    cluster.act(cluster.root.connection_lost("b", 1.0))
    generation = cluster.root.generation
    cluster.tell("a", m.Join(generation, "a:1", None, 2, 2, 2))
    cluster.connect("c")
    cluster.join("c", 4)
    assert [machine for machine, _ in cluster.messages(m.Refused)] == ["c"]
    cluster.connect("d")
    cluster.join("d", 2)
    assert cluster.root.places == ["a", "d"]


def test_nothing_is_compared_with_a_machine_that_does_not_say_how_many_ranks_it_has():
    """Its launcher is not torchrun's command."""
    cluster = Cluster(2)
    for machine, num_ranks in (("a", 0), ("b", 2)):
        cluster.connect(machine)
        cluster.join(machine, num_ranks)
    assert cluster.root.running


@pytest.mark.parametrize("hint", [-1, -4, 3, 10**9])
def test_a_place_that_does_not_exist_is_no_place(hint):
    """A negative one, from any process with the secret, used to end the root agent."""
    cluster = Cluster()
    for machine in "abc":
        cluster.connect(machine)
        own = hint if machine == "a" else None
        cluster.tell(machine, m.Join(0, f"{machine}:1", own, 3, 3))
    assert sorted(cluster.root.places) == ["a", "b", "c"]


def test_where_too_few_are_left_at_the_end_a_lost_rank_is_final():
    """A machine has ended well, and nobody takes its place."""
    cluster = Cluster(2).form()
    cluster.tell("b", m.Leave())
    cluster.tell("a", m.RankLost(1, 0, -9))
    ((machine, broken),) = cluster.messages(m.Broken)
    assert (machine, broken.is_final) == ("a", True)


def test_a_machine_that_waits_when_another_ends_well_waits_in_vain():
    """Whichever comes first, the loss of a rank or the end of the other machine."""
    cluster = Cluster(2).form()
    cluster.tell("a", m.RankLost(1, 0, -9))
    cluster.join("a")
    cluster.tell("b", m.Leave())
    assert [machine for machine, _ in cluster.messages(m.Refused)] == ["a"]


def test_spares_are_not_needed_once_a_machine_has_ended_well():
    """Be they waiting or about to; alone they would be enough, and begin the job again."""
    cluster = Cluster(1).form()
    for spare in "bc":
        cluster.connect(spare)
    cluster.join("b")
    cluster.tell("a", m.Leave())
    assert [machine for machine, _ in cluster.messages(m.Dismissed)] == ["b"]
    cluster.join("c")
    assert [machine for machine, _ in cluster.messages(m.Dismissed)] == ["c"]
    cluster.wait(60.0)
    assert not cluster.root.running


def test_a_job_that_waits_for_machines_says_so_after_a_while():
    """Once; most come within seconds."""
    cluster = Cluster(3)
    for machine in "ab":
        cluster.connect(machine)
        cluster.join(machine)
    logged = []
    for _ in range(30):
        logged += cluster.wait(0.5).logged
    assert [fields["reason"] for _, fields in logged] == ["2 of 3 machines are there"]


def test_who_waits_while_others_train_is_told_that_it_is_a_spare():
    """Else it would end after `join_timeout`, and take a root agent of its machine along."""
    cluster = Cluster(2).form()
    for spare in "cd":
        cluster.connect(spare)
        cluster.join(spare)
        assert cluster.messages(m.Spare) == [(spare, m.Spare(1))]
    cluster.tell("a", m.RankLost(1, 0, 1))
    cluster.join("a")
    cluster.join("b")
    assert cluster.root.places == ["a", "b"]
    assert cluster.messages(m.Spare) == [("c", m.Spare(2)), ("d", m.Spare(2))]


def test_a_spare_takes_the_place_of_a_machine_that_gave_up_after_a_failure():
    """That one leaves, too, but the job has not ended by that."""
    cluster = Cluster(2).form()
    cluster.connect("c")
    cluster.join("c")
    cluster.tell("b", m.RankLost(1, 1, 1))
    cluster.tell("b", m.Leave())
    cluster.join("a")
    assert cluster.root.places == ["a", "c"]


def test_a_machine_that_comes_after_the_end_may_begin_the_next_job():
    """It is no spare of the one that has ended."""
    cluster = Cluster(1).form()
    cluster.tell("a", m.Leave())
    cluster.connect("d")
    cluster.join("d")
    assert cluster.root.places == ["d"]


def test_a_second_checkpointer_of_a_rank_gets_tickets_of_its_own():
    """Those of the first one have ended with it."""
    cluster = Cluster().form().attach_all()
    cluster.tell("a", m.Attached(1, 0, 3, 10))
    assert [told.ticket for _, told in cluster.messages(m.Resolve)] == [1, 1, 1]
    assert [told.ticket for _, told in cluster.messages(m.Ticket)] == [2, 2, 2]
