"""The root agent's decisions: membership, failures, commit, recovery. Pure: no I/O, no clock.

`Root.receive`, `Root.connection_lost` and `Root.tick` take an event and the time, and return
actions; `twinckpt.agents.root` carries them out over sockets, the simulator in virtual time.
The life of a generation:

    machines join → formed (recovery plan) → `twinckpt.core.generation` → a machine or rank
    is lost → broken → machines join again

A root that is given its predecessor's record takes the generation over (`core.adoption`).
"""

from dataclasses import dataclass

from twinckpt.core import messages as m
from twinckpt.core.adoption import Adoption, GenerationRecord
from twinckpt.core.commit import CommitLog, generation_of
from twinckpt.core.copies import Copies
from twinckpt.core.drains import Drains
from twinckpt.core.ending import Ending
from twinckpt.core.failed_ranks import FailedRanks
from twinckpt.core.forming import may_grow, size_to_form
from twinckpt.core.generation import Generation, Memory
from twinckpt.core.membership import Machine, Membership
from twinckpt.core.outbox import Action, Disconnect, Log, Outbox, Send
from twinckpt.core.placement import check_kind, holders_of
from twinckpt.core.recovery import Recovery, newest_recoverable, plan_recovery, why_lost
from twinckpt.errors import ConfigurationError

__all__ = ["Action", "Disconnect", "Log", "Root", "RootConfig", "Send"]

# A machine that claims a huge generation would use up the numbers: messages hold 64 bits.
_MOST_GENERATIONS_AHEAD = 1_000_000


@dataclass(frozen=True, slots=True)
class RootConfig:
    """What the root must know of a job; durations in seconds."""

    replicas: int = 2
    placement: str = "ring"
    num_slots: int = 2
    heartbeat_timeout_s: float = 1.0
    last_call_s: float = 5.0
    drain_every_commits: int = 0
    drain_every_s: float = 0.0
    max_failures_at_a_step: int = 3

    def __post_init__(self) -> None:
        if self.replicas < 1:
            raise ConfigurationError(f"replicas={self.replicas}: at least 1, the local copy")
        if self.num_slots < 2:
            raise ConfigurationError(
                f"num_slots={self.num_slots}: at least 2, the committed step and the next"
            )
        check_kind(self.placement)


class Root:
    """State machine of the root agent.

    One that takes over begins after `generation`, the newest that its starter knows; it learns of
    newer ones, and of all copies, from the workers' first messages. A generation whose `record`
    was left goes on once all of its machines are back.
    """

    def __init__(
        self,
        config: RootConfig,
        generation: int = 0,
        record: GenerationRecord | None = None,
        now_s: float = 0.0,
    ) -> None:
        self.config = config
        self.generation = generation
        self.current: Generation | None = None
        self.newest: Generation | None = None  # `current`, or the one that ended last
        self.adoption: Adoption | None = None
        self.membership = Membership()
        self.copies = Copies()
        self.commits = CommitLog(window=config.num_slots - 1)
        self.drains = Drains(config.drain_every_commits, config.drain_every_s)
        self._outbox = Outbox()
        self._awaited: set[tuple[str, int, int]] = set()
        self._now_s = now_s
        self._failed = FailedRanks(config.max_failures_at_a_step)
        self._lacks = ""
        self._ending = Ending(self.membership, self._outbox)
        if record is not None and record.number >= generation:
            self.generation = record.number
            self.adoption = Adoption(record, now_s)
            self.membership.take(record.places)

    @property
    def record(self) -> GenerationRecord | None:
        """Return what a successor needs to go on with the running generation; None without one."""
        source = self.current or self.adoption
        return source.record if source else None

    @property
    def running(self) -> bool:
        """Return whether a generation has formed and is not over."""
        return self.current is not None

    @property
    def state(self) -> str:
        """Return "forming", "adopting", "recovering" (not yet redundant again), or "running"."""
        if self.current is None:
            return "adopting" if self.adoption else "forming"
        return "recovering" if self.commits.is_restoring else "running"

    @property
    def num_ranks(self) -> int:
        """Return how many ranks take checkpoints."""
        return self.current.num_ranks if self.current else 0

    @property
    def places(self) -> list[str]:
        """Return the machines of the newest generation, in order."""
        return self.membership.places

    def awaits(self, machine: str, message: m.ToRoot) -> bool:
        """Return whether this is a copy that was under way when the last generation ended."""
        if not isinstance(message, m.Holds) or self.record is not None:
            return False
        copy = (machine, message.holding.rank, message.holding.ticket)
        return message.generation == self.generation and copy in self._awaited

    # Events.

    def receive(self, machine: str, message: m.ToRoot, now_s: float) -> list[Action]:
        """Handle one message; those of another generation change only liveness.

        The exception is a copy that was under way when the last generation ended: it was sealed
        meanwhile, and is one more to resume from.
        """
        self._now_s = now_s
        known = self.membership.machines.get(machine)
        if isinstance(message, m.Hello):
            self._on_hello(machine, message)
        elif known is not None:
            known.last_heard_s = now_s
            self._on_message(machine, message)
            if isinstance(message, m.Heartbeat | m.Join | m.Drained):  # nothing commits with these
                self._grow_if_possible()
        return self._outbox.take()

    def _on_message(self, machine: str, message: m.ToRoot) -> None:
        match message:
            case m.Hello() | m.Heartbeat():
                pass
            case m.Join():
                self._on_join(machine, message)
            case m.Leave():
                self._on_leave(machine)
            case m.SaveCounts():
                counts = {"saves": message.saves, "skipped": message.skipped}
                self._log("save_counts", rank=message.rank, failed=message.failed, **counts)
            case _ if self.current and message.generation == self.current.number:
                self._on_current(machine, message, self.current)
            case _ if self.adoption and message.generation == self.adoption.record.number:
                self.adoption.keep(machine, message)
            case m.RankLost() if not self.record and message.generation == self._ending.generation:
                self._on_rank_lost_at_the_end(machine, message)
            case m.Finished(number, rank) if not self.record and number == self._ending.generation:
                # A machine has left, so nothing more is drained.
                answer = m.NothingToDrain(number, rank, self.drains.newest_step)
                self._outbox.send(machine, answer)
            case m.Holds() if self.awaits(machine, message):
                self._awaited.discard((machine, message.holding.rank, message.holding.ticket))
                self.copies.add(machine, message.holding)

    def connection_lost(self, machine: str, now_s: float) -> list[Action]:
        """The kernel says that a machine's connection ended: it died, or was cut off."""
        self._now_s = now_s
        self._lose(machine, "connection closed")
        self._form_if_complete()
        return self._outbox.take()

    def tick(self, now_s: float) -> list[Action]:
        """Let time pass: find silent machines, end the wait for late ones."""
        self._now_s = now_s
        timeout_s = self.config.heartbeat_timeout_s
        for machine in self.membership.silent(now_s, timeout_s):
            self._lose(machine, f"no heartbeat for {timeout_s} s")
            self._outbox.disconnect(machine)
        if self.adoption and self.adoption.is_late(now_s, timeout_s):
            self._give_up_on_the_missing(self.adoption)
        if self.drains.has_become_slow(now_s):
            self._log("drain_is_slow", step=self.drains.step, num_slots=self.config.num_slots)
        self._form_if_complete()
        return self._outbox.take()

    # Membership.

    def _on_hello(self, machine: str, hello: m.Hello) -> None:
        if machine in self.membership.machines:
            self._lose(machine, "connected again")
        newest_ticket = _newest_ticket_in(hello)
        generation = max(hello.generation, generation_of(newest_ticket))
        if generation > self.generation + _MOST_GENERATIONS_AHEAD:
            reason = f"no job comes from generation {self.generation} to {generation}"
            self._outbox.send(machine, m.Refused(self.generation, reason))
            return
        if generation > self.generation:
            # Another root went further, and machines of its generation would ignore this root.
            self._break(f"{machine} comes from a later generation, {generation}")
            self.generation = generation
        self.membership.add(machine, Machine(hello.address, self._now_s, hello.domain))
        self.copies.add_machine(machine, hello.inventory)
        self._awaited |= {(machine, *copy) for copy in hello.fetching}
        self.drains.found(hello.drained_steps)
        self.commits.skip_past(newest_ticket)
        self._log("machine_joined", machine=machine, host=hello.address.host)
        self._reconcile(machine, hello)

    def _reconcile(self, machine: str, hello: m.Hello) -> None:
        """Let a machine take part in the adoption if it runs that generation, or else stop it."""
        adoption = self.adoption
        is_member = adoption is not None and machine in adoption.record.places
        if adoption and is_member and hello.running and hello.generation == adoption.record.number:
            adoption.hear(machine, hello.running, self._now_s)
            if not adoption.missing:
                self._adopt(adoption)
            return
        if is_member:
            self._break(f"machine {self.membership.index[machine]} has stopped")
        if hello.running:
            broken = m.Broken(hello.generation, "nobody else goes on with it")
            self._outbox.send(machine, broken)

    def _on_join(self, machine: str, join: m.Join) -> None:
        is_member = self.record is not None and machine in self.membership.index
        if is_member and join.generation < self.generation:
            return  # sent before the machine was told that the generation has formed
        if self._ending.is_unneeded(machine):
            self._ending.dismiss(machine, self.generation)
            return
        self.membership.join(machine, join, self._now_s)
        if is_member:
            self._break(f"machine {self.membership.index[machine]} joins again")
        elif self.current:
            self._log("machine_waiting", machine=machine)
            self._outbox.send(machine, m.Spare(self.generation))
        self._form_if_complete()
        self._ending.refuse_to_wait_in_vain(self.generation)

    def _on_leave(self, machine: str) -> None:
        self._forget(machine)
        if machine in self.membership.index:
            if self.record:
                self._ending.dismiss_spares(self.generation)
            self.current = self.adoption = None
            self._ending.generation = self.generation
        self._log("machine_left", machine=machine)
        self._ending.refuse_to_wait_in_vain(self.generation)

    def _on_rank_lost_at_the_end(self, machine: str, lost: m.RankLost) -> None:
        self._log("rank_lost", rank=lost.rank, machine=machine, exit_code=lost.exit_code)
        reason = f"rank {lost.rank} was lost when other machines had ended already"
        is_final = lost.is_final or self._ending.are_too_few_left(self.generation)
        self._outbox.send(machine, m.Broken(lost.generation, reason, is_final))

    def _forget(self, machine: str) -> bool:
        self.copies.remove_machine(machine)
        self._awaited = {copy for copy in self._awaited if copy[0] != machine}
        self._ending.forget(machine)
        if self.adoption:
            self.adoption.forget(machine)
        return self.membership.remove(machine) is not None

    def _lose(self, machine: str, reason: str) -> None:
        known = self.membership.machines.get(machine)
        if known is None or not self._forget(machine):
            return
        index, silent_s = self.membership.index.get(machine), self._now_s - known.last_heard_s
        what = {"machine": machine, "index": index, "reason": reason}
        self._log("machine_lost", **what, silent_s=round(silent_s, 3))
        if index is not None and self.current:
            self._break(f"machine {index} was lost: {reason}")

    def _break(self, reason: str, *, is_final: bool = False) -> None:
        """End the generation that runs or is taken over, if there is one."""
        record, adoption = self.record, self.adoption
        if record is None:
            return
        broken = m.Broken(record.number, reason, is_final)
        if self.current:
            self._awaited = self.current.fetches
        self.current = self.adoption = None
        self.membership.last_change_s = self._now_s
        self._log("generation_broken", reason=reason)
        self._outbox.broadcast(self.membership.connected_places(), broken)
        for machine, message in adoption.reports() if adoption else ():
            self._on_message(machine, message)  # a copy that was under way may have arrived

    # Taking over.

    def _adopt(self, adoption: Adoption) -> None:
        """Go on with the generation, since all of its machines are back."""
        record, resume = adoption.record, adoption.record.resume
        recovery = Recovery(resume.step, resume.ticket) if resume else None
        self.adoption = None
        self.current = self._generation(recovery)
        self.current.fetches |= self._awaited
        self._log("generation_adopted", machines=list(record.places))
        self._tell_spares()
        reason = self.current.adopt(adoption.told, self._now_s)
        if reason is not None:
            self._break(reason)
        for machine, message in adoption.reports():
            self._on_message(machine, message)

    def _give_up_on_the_missing(self, adoption: Adoption) -> None:
        indices = [self.membership.index[name] for name in adoption.missing]
        for name, index in zip(adoption.missing, indices, strict=True):
            self._log("machine_lost", machine=name, index=index, reason="has not come back")
        self._break(f"machines {indices} have not come back to a new root")

    # Forming a generation.

    def _form_if_complete(self) -> None:
        if self.current is None and self.adoption is None:
            forming = size_to_form(
                self.membership,
                self.copies,
                self.commits,
                self.drains,
                self._now_s,
                last_call_s=self.config.last_call_s,
                return_s=self.config.heartbeat_timeout_s,
            )
            if forming.lacks and forming.lacks != self._lacks:
                self._log("waiting_for_machines", reason=forming.lacks)
            self._lacks = forming.lacks
            if forming.size and not self._refuse_misfits():
                self._form(forming.size)

    def _refuse_misfits(self) -> bool:
        """Refuse waiting machines with other numbers of ranks; return whether there are any.

        Ranks are numbered across machines, so each machine of a generation must have as many.
        """
        misfits = self.membership.misfits()
        if misfits:
            told = ", ".join(
                f"{join.num_ranks} on {name} ({self.membership.machines[name].address.host})"
                for name, join in self.membership.waiting.items()
            )
            reason = f"all machines need the same --nproc-per-node, but it is {told}"
            self._log("machines_refused", machines=misfits, reason=reason)
            for name in misfits:
                self.membership.stop_waiting(name)
                self._outbox.send(name, m.Refused(self.generation, reason))
        return bool(misfits)

    def _grow_if_possible(self) -> None:
        """End the generation for a larger one, once that loses no step, unless the job ends."""
        if self.current is None or self.current.is_ending:
            return
        size, num_machines = self.membership.size_with_waiting(), len(self.places)
        self.current.is_growing = size > num_machines and self.drains.is_enabled
        if may_grow(self.membership, self.commits, self.drains, num_machines):
            step = self.drains.newest_step
            self._break(f"{size} machines instead of {num_machines} go on from drained step {step}")

    def _form(self, size: int) -> None:
        """Begin the next generation; survivors keep their places, newcomers fill the gaps."""
        joins = self.membership.form(size, self._newest_ticket)
        places = self.membership.places
        self.generation += 1
        recovery = self._plan()
        self._report_lost_steps(recovery)
        self.current = self._generation(recovery)
        sources = recovery.sources if recovery else {}
        resume = recovery.resume if recovery else None
        meet_at = joins[0].master_endpoint
        for index, name in enumerate(places):
            formed = m.Formed(self.generation, index, len(places), meet_at, resume)
            self._outbox.send(name, formed)
        self._log(
            "generation_formed",
            machines=list(places),
            recover_step=recovery.step if recovery else None,
            drained=bool(recovery and recovery.is_from_storage),
            sources={rank: list(names) for rank, names in sources.items()},
        )
        self._tell_spares()
        if resume:
            self.current.fetch_missing(resume.ticket)

    def _tell_spares(self) -> None:
        """Tell the machines without a place that a generation runs, so that they keep waiting."""
        for name in self.membership.waiting:
            self._outbox.send(name, m.Spare(self.generation))

    def _generation(self, recovery: Recovery | None) -> Generation:
        places = self.membership.places
        domains = [self.membership.machines[name].domain for name in places]
        holders = holders_of(self.config.placement, self.config.replicas, domains)
        memory = Memory(self.copies, self.commits, self.drains)
        what = (self.generation, places, holders, recovery, memory)
        self.newest = Generation(*what, self.membership.address, self._outbox)
        return self.newest

    def _plan(self) -> Recovery | None:
        """Return where to resume: the newest step in memory, or else in persistent storage.

        It is the latter, too, if another number of machines wrote the newest step in memory.
        """
        holdings = {name: self.copies.of_machine(name) for name in self.membership.machines}
        plan = plan_recovery(holdings, dict(enumerate(self.membership.places)))
        is_newest = plan is not None and plan.ticket == newest_recoverable(holdings).ticket
        if not is_newest and self.drains.newest_step is not None:
            plan = Recovery(step=self.drains.newest_step)
        return plan

    def _report_lost_steps(self, recovery: Recovery | None) -> None:
        """Say which committed steps have to be trained again, if any."""
        safe_step, step = self.commits.resumable_step, recovery.step if recovery else 0
        if safe_step is None or step >= safe_step:
            return
        reason = why_lost(recovery, len(self.places))
        steps = {"committed_step": safe_step, "recover_step": step, "lost_steps": safe_step - step}
        self._log("steps_lost", **steps, reason=reason)

    def _newest_ticket(self, machine: str) -> int:
        return max((holding.ticket for holding in self.copies.of_machine(machine)), default=0)

    # Messages of the running generation.

    def _on_current(self, machine: str, message: m.ToRoot, current: Generation) -> None:
        if machine not in self.membership.index:
            return
        if isinstance(message, m.RankLost):
            self._on_rank_lost(machine, message, current)
        elif isinstance(message, m.DamagedDrained):
            self.drains.are_only(message.drained_steps)
            self._break(f"drained step {message.step} is damaged: {message.reason}")
        elif (reason := current.receive(machine, message, self._now_s)) is not None:
            self._break(reason)

    def _on_rank_lost(self, machine: str, lost: m.RankLost, current: Generation) -> None:
        """End the generation, or the job if the rank may not restart or fails time and again."""
        self._log("rank_lost", rank=lost.rank, machine=machine, exit_code=lost.exit_code)
        resumed_step = current.recovery.step if current.recovery else 0
        step = self.commits.committed_step or resumed_step
        is_given_up = self._failed.count(lost.exit_code, step)
        if lost.is_final:
            self._break(
                f"rank {lost.rank} was lost (exit code {lost.exit_code}), and --max-restarts "
                "leaves no further try",
                is_final=True,
            )
        elif is_given_up:
            self._break(
                f"rank {lost.rank} failed {self._failed.num_failures} times after step {step} with "
                f"exit code {lost.exit_code}; its traceback is in its output",
                is_final=True,
            )
        else:
            self._break(f"rank {lost.rank} was lost (exit code {lost.exit_code})")

    def _log(self, event: str, **fields: object) -> None:
        self._outbox.log(event, self.generation, **fields)


def _newest_ticket_in(hello: m.Hello) -> int:
    """Return the newest ticket that a machine knows of; 0 if none."""
    heard = hello.running.newest_ticket if hello.running else 0
    return max(heard, hello.drained_ticket, *(held.ticket for held in hello.inventory), 0)
