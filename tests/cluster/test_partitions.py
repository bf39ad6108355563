"""Real agents on emulated hosts, whose links are cut (one way or both), slowed, and healed."""

import dataclasses
import time

import pytest
from network import Network, why_not

from helpers import wait_until
from twinckpt.agents.job_settings import JobSettings
from twinckpt.experiments.agent_cluster import AgentCluster, AgentMachine
from twinckpt.net import local
from twinckpt.net.bulk import TRANSFER_TIMEOUT_S
from twinckpt.results.jsonl import read_jsonl

WHY_NOT = why_not()
pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

HOSTS = ["root", "a", "b", "c", "d"]
SHARD_BYTES = 300_000
SLOW_BYTES_PER_S = 220_000  # a shard takes a little longer than a heartbeat may be late
HEARTBEAT_TIMEOUT_S = JobSettings().heartbeat_timeout_s


class HostedMachine(AgentMachine):
    """A machine on a host of its own: whoever talks to its agent must be there."""

    def __init__(self, network, host, config, secret):
        self.host, self.name, self._network = host, config.machine, network
        with network.inside(host):
            super().__init__(config, secret)

    def join(self, num_machines):
        with self._network.inside(self.host):
            super().join(num_machines)

    def wait_until_formed(self, num_machines):
        with self._network.inside(self.host):
            super().wait_until_formed(num_machines)


class HostedCluster(AgentCluster):
    """Three machines and the root agent, each on a host; a fourth host for a replacement."""

    def __init__(self, network, run_dir):
        super().__init__(3, 2, "ring", SHARD_BYTES, run_dir)
        self.network = network
        self.away = []
        self._free_hosts = HOSTS[1:]
        self._root_host = network.address("root")

    def _start_root(self):
        with self.network.inside("root"):
            return super()._start_root()

    def _start_machine(self):
        host = self._free_hosts.pop(0)
        config = dataclasses.replace(self._new_machine(), host=self.network.address(host))
        return HostedMachine(self.network, host, config, self._secret)

    def machine(self, place):
        return self._machines[place]

    def go_on_without(self, place):
        """Replace a machine that the others were told is lost; return the step resumed."""
        lost = self._machines[place]
        self.away.append(lost)
        survivors = [machine for machine in self._machines if machine is not lost]
        for machine in survivors:
            machine.wait_until_broken()
        self._machines = survivors
        self._form(survivors)
        return self.restored_step()

    def take_back(self):
        """Let the machine that was away ask for a place, once it knows that it lost its own."""
        machine = self.away.pop()
        machine.wait_until_broken()
        machine.join(self.num_machines)
        self.wait_for("machine_waiting", machine=machine.name)
        return machine

    def replace_by(self, place, newcomer):
        """Kill a machine; one that waits takes its place. Return the step resumed."""
        lost = self._machines[place]
        survivors = [machine for machine in self._machines if machine is not lost]
        self._end_machine(lost)
        for machine in survivors:
            machine.wait_until_broken()
            machine.join(self.num_machines)
        self._machines = [*survivors, newcomer]
        for machine in self._machines:
            machine.wait_until_formed(self.num_machines)
        self._machines.sort(key=lambda machine: machine.place)
        return self.restored_step()

    def wait_until_broken(self):
        for machine in self._machines:
            machine.wait_until_broken()

    def come_together(self):
        """Let the same machines form the next generation; return the step resumed."""
        self._form(self._machines)
        return self.restored_step()

    def restored_step(self):
        """Return the step that all machines restore; every byte is compared."""
        for machine in self._machines:
            machine.to_agent(local.RestoreRequest())
        (step,) = {self._restored_step(machine) for machine in self._machines}
        return step

    def events(self, of=None):
        """What the root agent, or a machine, has logged so far."""
        return read_jsonl(self._run_dir / "events" / f"{of.name if of else 'root'}.jsonl")

    def num_failures(self):
        return sum(e["event"] in ("machine_lost", "generation_broken") for e in self.events())

    def wait_for(self, event, of=None, **fields):
        """Return the first such event."""

        def found():
            return [
                e for e in self.events(of) if e["event"] == event and fields.items() <= e.items()
            ]

        return wait_until(found, f"{event} {fields}")[0]

    def give_up_who_is_away(self):
        while self.away:
            self._end_machine(self.away.pop())

    def _end_machine(self, machine):
        machine.kill()
        machine.bury()
        self._free_hosts.append(machine.host)

    def _end(self):
        self.give_up_who_is_away()
        super()._end()


@pytest.fixture(scope="module")
def hosted(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("partitions")
    with Network(HOSTS) as network, HostedCluster(network, run_dir) as found:
        yield found


@pytest.fixture
def cluster(hosted):
    """Three machines in their places, which reach each other."""
    yield hosted
    hosted.network.heal()
    hosted.give_up_who_is_away()


@pytest.mark.parametrize("directions", ["both", "outgoing", "incoming"])
def test_a_machine_that_is_cut_off_is_fenced_replaced_and_comes_back(cluster, directions):
    """Its replica stands in; what it has of a former generation is not accepted any more."""
    lost, before = cluster.machine(1), len(cluster.events())
    committed = cluster.checkpoint()
    cut = {"outgoing": directions != "incoming", "incoming": directions != "outgoing"}
    cluster.network.isolate(lost.host, **cut)
    reason = cluster.wait_for("machine_lost", machine=lost.name)["reason"]
    assert reason.startswith("no heartbeat")
    assert cluster.go_on_without(1) == committed
    committed = cluster.checkpoint()
    cluster.network.heal()
    back = cluster.take_back()
    assert cluster.replace_by(0, back) == committed
    assert cluster.checkpoint() == committed + 1
    formed = [e for e in cluster.events()[before:] if e["event"] == "generation_formed"]
    assert [lost.name in event["machines"] for event in formed] == [False, True]


def test_a_machine_cut_off_amid_a_transfer_keeps_no_slot_occupied(cluster):
    """A receiver gives up on it long before a slow peer's time is over."""
    committed = cluster.checkpoint()
    lost, receiver = cluster.machine(1), cluster.machine(2)
    cluster.network.slow_down(lost.host, SLOW_BYTES_PER_S // 3)
    tickets = cluster.stage()
    cluster.wait_for("fetch_started", of=receiver, sources=[lost.name], ticket=tickets[1])
    cluster.network.isolate(lost.host)
    cut_s = time.monotonic()
    assert cluster.go_on_without(1) == committed
    cluster.checkpoint()
    assert time.monotonic() - cut_s < TRANSFER_TIMEOUT_S


def test_a_slow_link_is_no_lost_machine(cluster):
    """A shard takes longer than a heartbeat may be late, and heartbeats share the link."""
    slow, failures = cluster.machine(1), cluster.num_failures()
    cluster.network.slow_down(slow.host, SLOW_BYTES_PER_S)
    began_s = time.monotonic()
    cluster.checkpoint()
    assert time.monotonic() - began_s > HEARTBEAT_TIMEOUT_S
    cluster.network.heal()
    assert cluster.num_failures() == failures


def test_machines_that_cannot_reach_each_other_lose_no_step(cluster):
    """Both reach the root: nobody is lost, nothing commits, and once they can it does."""
    committed = cluster.checkpoint()
    first, second = cluster.machine(0), cluster.machine(1)
    failures = cluster.num_failures()
    cluster.network.cut(first.host, second.host)
    cluster.network.cut(second.host, first.host)
    tickets = cluster.stage()
    cluster.wait_for("fetch_started", of=second, sources=[first.name], ticket=tickets[0])
    assert cluster.events()[-1]["step"] == committed
    cluster.network.heal()
    assert cluster.wait_until_committed(tickets) == committed + 1
    assert cluster.num_failures() == failures


def test_when_the_root_is_cut_off_everybody_notices_and_no_step_is_lost(cluster):
    """As if its host had lost power: nobody closes the connections."""
    committed = cluster.checkpoint()
    cluster.network.isolate("root")
    cluster.wait_until_broken()
    cluster.network.heal()
    assert cluster.come_together() == committed
    assert cluster.checkpoint() == committed + 1
