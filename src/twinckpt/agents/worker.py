"""The worker agent's process, one a machine: owns the slots, copies, heartbeats, drains.

`python -m twinckpt.agents.worker CONFIG` carries out what `twinckpt.core.worker.Worker`
decides. It never imports torch. It ends with its launcher, and its memory with it.
"""

import asyncio
import contextlib
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from twinckpt.agents.config import WorkerAgentConfig, named_settings, worker_config
from twinckpt.agents.control_store import RootEntry, open_store
from twinckpt.agents.drained_steps import DrainedSteps
from twinckpt.agents.event_log import MachineEvents
from twinckpt.agents.hang_watch import watch_for_hangs
from twinckpt.agents.local_server import LocalPeer, LocalServer
from twinckpt.agents.process import allow_all_descriptors, when_all_end, when_process_ends
from twinckpt.agents.root_link import RootLink
from twinckpt.agents.root_watch import follow_root
from twinckpt.agents.scrub import Scrub
from twinckpt.agents.transfers import Fetched, StepDrain, fetch_shard
from twinckpt.agents.warm_parents import WarmParents
from twinckpt.core import messages as m
from twinckpt.core import worker_actions as act
from twinckpt.core.worker import Worker
from twinckpt.errors import AgentUnavailableError, OutOfMemoryError, TwinckptError
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net import local
from twinckpt.net.bulk import BulkClient, BulkServer
from twinckpt.net.secret import load_secret

logger = logging.getLogger(__name__)

ROOT_ABSENCE_S = 600.0  # how long ranks go on while no root is elected

_Work = TypeVar("_Work")


class WorkerAgent:
    """Drives the worker's state machine over sockets; everything runs in one event loop.

    Only what may take long runs in threads, and returns to the loop. These share `_checkpoints`,
    which has a lock of its own, and the progress of a fetch: its thread puts it into `_arriving`,
    and asks `Worker.awaits`, which only reads.
    """

    def __init__(self, config: WorkerAgentConfig, secret: bytes) -> None:
        self._config = config
        self._checkpoints = InMemoryCheckpoint(config.num_slots, config.capacity_bytes)
        self._core = Worker(self._checkpoints)
        self._events = MachineEvents(config.event_log, config.machine, self._core)
        self._loop: asyncio.AbstractEventLoop
        tls = config.tls.load()
        self._bulk_server = BulkServer(self._checkpoints, secret, config.host, tls)
        self._bulk = BulkClient(secret, tls)
        self._address = m.Address(config.machine, config.host, self._bulk_server.port)
        self._local = LocalServer(config.socket_name, secret, self._on_local, self._on_local_end)
        on_root = (self._on_root, self._on_root_lost, self._on_refused)
        self._root = RootLink(config, secret, tls, self._hello, *on_root)
        self._allocations = ThreadPoolExecutor(1, thread_name_prefix="allocate")
        self._transfers = ThreadPoolExecutor(4, thread_name_prefix="fetch")
        self._drains = ThreadPoolExecutor(1, thread_name_prefix="drain")
        self._drain_step = StepDrain(self._checkpoints, config)
        self._drained_steps = DrainedSteps(config.drain_directory)
        self._ranks: dict[int, LocalPeer] = {}
        self._launcher: LocalPeer | None = None
        self._warm = WarmParents()
        self._join: m.Join | None = None
        self._wishes: tuple[int, int, int] | None = None  # the last fields of a Join
        self._given_up = ""
        self._received: set[tuple[int, int]] = set()
        self._arriving: dict[int, tuple[act.StartFetch, Seal, int]] = {}
        self._reads_along: dict[int, act.StartFetch] = {}
        self._absence: asyncio.TimerHandle | None = None
        self._done = asyncio.Event()

    async def run(self) -> None:
        """Serve until the launcher ends."""
        self._loop = loop = asyncio.get_running_loop()
        self._checkpoints.on_unpinned = lambda: self._in_loop(
            lambda: self._act(self._core.unpinned())
        )
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, lambda: None)
        when_all_end(self._config.watched, self._done.set)
        if self._config.store:
            store = open_store(self._config.store)
            follow = (store, self._on_elected)
            threading.Thread(target=follow_root, args=follow, daemon=True).start()
        launcher_ended = asyncio.create_task(self._done.wait())
        serving = [asyncio.create_task(self._local.run()), asyncio.create_task(self._root.run())]
        if self._config.scrub_bytes_per_s:
            rate = self._config.scrub_bytes_per_s
            Scrub(self._checkpoints, rate, self._on_scrubbed_damage).start()
        if self._config.hang_timeout_s:
            watch = watch_for_hangs(lambda: dict(self._ranks), self._config.hang_timeout_s)
            serving.append(asyncio.create_task(watch))
        await asyncio.wait([launcher_ended, *serving], return_when=asyncio.FIRST_COMPLETED)
        for task in serving:
            if task.done():
                task.result()  # an agent with a defect dies loudly; the root replaces its copies
        if self._root.is_leaving:
            self._root.send(m.Leave())
            await self._root.flush()

    # The root agent.

    async def _hello(self) -> list[m.ToRoot]:
        """Return what the root must know first, on each new connection."""
        trains = self._core.formed is not None  # a root that takes over does not wait for long
        timeout_s = self._config.heartbeat_timeout_s / 2 if trains else None
        steps, ticket = await self._drained_steps.list(timeout_s)
        if self._absence is not None:
            self._absence.cancel()
        inventory = tuple(self._checkpoints.holdings())
        domain = self._config.failure_domain
        number, fetching = self._core.generation, tuple(self._core.fetching)
        self._events.write("root_found", host=self._root.address[0], port=self._root.address[1])
        held = (inventory, steps, ticket, domain, fetching)
        told = named_settings(self._config.job) if self._config.job else {}
        hello = m.Hello(
            self._address, number, *held, self._core.running(), told, self._config.run_id
        )
        return [hello, *self._core.unheard(), *([self._join] if self._join is not None else [])]

    def _on_root(self, message: m.ToWorker) -> None:
        if isinstance(message, m.Refused):
            self._on_refused(message.reason)
        elif isinstance(message, m.Spare):
            self._tell_launcher(local.LauncherWaits(is_spare=True))
        elif isinstance(message, m.Dismissed):
            self._tell_launcher(local.LauncherDismissed())
        elif isinstance(message, m.Reserve):
            self._with_room(message.rank, message.slot_bytes, lambda: self._receive(message))
        elif isinstance(message, m.Fetch):
            self._with_room(message.rank, message.size_bytes, lambda: self._receive(message))
        else:
            self._receive(message)

    def _with_room(self, rank: int, slot_bytes: int, then: Callable[[], None]) -> None:
        """Take memory for slots in a thread, so that heartbeats go on; then continue here."""
        if self._checkpoints.has_room(rank, slot_bytes):
            then()
            return

        def allocate(_: None) -> Callable[[], None]:
            with contextlib.suppress(TwinckptError):  # `then` meets it again, and reports it
                self._checkpoints.reserve(rank, slot_bytes)
            return then

        self._start(self._allocations, allocate, None)

    def _receive(self, message: m.ToWorker) -> None:
        if isinstance(message, m.Formed):
            self._join = None
            self._received.clear()
        try:
            actions = self._core.receive(message)
            self._events.from_root(message)
            self._end_stale_transfers(message)
            self._act(actions)
        except TwinckptError as error:
            logger.error("%s: %s", type(message).__name__, error)
            for peer in self._ranks.values():
                peer.send(local.Refused(type(error).__name__, str(error)))
        if isinstance(message, m.Formed) and self._core.formed is message:
            self._ranks.clear()  # those of the former generation may take a moment to end
            self._tell_launcher(
                local.LauncherFormed(
                    message.generation,
                    message.index,
                    message.num_machines,
                    message.master_endpoint,
                )
            )

    def _end_stale_transfers(self, message: m.ToWorker) -> None:
        """Cancel the transfers that nobody wants any more, or that have other sources now.

        A frozen source would hold up a transfer, and with it a slot, for half a minute.
        """
        if isinstance(message, m.Formed | m.Resolve):
            for rank, ticket in self._core.fetching:
                if self._checkpoints.find(rank, ticket) is None:
                    self._bulk.cancel(rank, ticket)
        elif isinstance(message, m.Fetch) and message.generation == self._core.generation:
            self._bulk.cancel(message.rank, message.ticket, unless_from=message.sources)

    def _on_refused(self, reason: str) -> None:
        self._act([act.BreakGeneration(reason, is_final=True)])

    def _on_elected(self, root: RootEntry) -> None:
        self._in_loop(lambda: self._root.move(root.host, root.port))

    def _on_root_lost(self) -> None:
        self._events.write("root_lost")
        if self._join is not None:
            self._tell_launcher(local.LauncherWaits(is_spare=False))
        if self._config.store:  # another one takes over; ranks go on meanwhile
            give_up = self._loop.call_later(ROOT_ABSENCE_S, self._give_up_root)
            self._absence = give_up
        else:
            if self._core.formed is not None:  # else parents wait, and torchrun would not be told
                self._warm.clear()
            self._give_up_root()

    def _give_up_root(self) -> None:
        self._act(self._core.root_lost())

    def _tell_launcher(self, message: local.FromAgent) -> None:
        """Tell those who start this machine's ranks: the warm parents, or else torchrun."""
        launchers = self._warm.parents or ([self._launcher] if self._launcher else [])
        for peer in launchers:
            peer.send(message)

    # Processes of this machine.

    def _on_local(self, peer: LocalPeer, message: local.ToAgent) -> None:
        if isinstance(message, local.Attach) and peer.rank is not None:
            rank, slot_bytes = peer.rank, message.slot_bytes
            self._with_room(rank, slot_bytes, lambda: self._on_local_message(peer, message))
        else:
            self._on_local_message(peer, message)

    def _on_local_message(self, peer: LocalPeer, message: local.ToAgent) -> None:
        self._events.from_machine(peer.rank, message)
        try:
            self._act(self._handle_local(peer, message))
        except TwinckptError as error:
            logger.error("rank %s: %s", peer.rank, error)
            peer.send(local.Refused(type(error).__name__, str(error)))
        if peer.rank is not None and isinstance(message, local.RestoreRequest | local.Damaged):
            self._reads_along.pop(peer.rank, None)
            self._tell_arrival(peer.rank)

    def _handle_local(self, peer: LocalPeer, message: local.ToAgent) -> list[act.Action]:
        match message:
            case local.RootQuestion():
                peer.send(local.RootAnswer(*self._root.address, self._root.is_connected))
            case local.RootMoved(host, port):
                self._root.move(host, port)
            case local.LauncherJoin():
                self._launcher = peer
                self._root.is_leaving = False
                self._warm.clear()
                if self._given_up:
                    peer.send(local.LauncherBroken(self._given_up, is_final=True))
                    return []
                self._wishes = (message.min_machines, message.max_machines, message.num_ranks)
                where = (message.master_endpoint, message.index_hint)
                self._join = m.Join(self._core.generation, *where, *self._wishes)
                self._root.send(self._join)
            case local.RankHello() if self._is_held(message.rank, peer):
                raise AgentUnavailableError(
                    f"rank {message.rank} is process {self._ranks[message.rank].pid} already: "
                    "another program needs a Checkpointer of its own job (unset TWINCKPT_AGENT)"
                )
            case local.RankHello():
                peer.rank, peer.world_size = message.rank, message.world_size
                self._ranks[message.rank] = peer
                # Its connection may live on in a process that it forked.
                with contextlib.suppress(OSError):
                    ended = partial(self._on_local_end, peer)
                    peer.watch_no_longer = when_process_ends(peer.pid, ended)
                formed = self._core.formed
                index = formed.index if formed else -1
                peer.send(local.Welcome(self._core.generation, index))
                return self._core.rank_started(message.rank, peer.pid)
            case local.LauncherStandby():
                self._launcher = peer
                self._wishes = (message.min_machines, message.max_machines, message.num_ranks)
            case local.LauncherLeave():
                self._root.send(m.Leave())
            case local.WarmHello():
                self._warm.add(peer, message)
            case local.WarmReady():
                if (endpoint := self._warm.ready(peer, message)) is not None and self._wishes:
                    self._join = m.Join(self._core.generation, endpoint, None, *self._wishes)
                    self._root.send(self._join)
            case local.ChildLost(rank, exit_code, is_final):
                return self._core.rank_lost(rank, exit_code, is_final=is_final)
            case local.Goodbye() if peer is self._launcher:
                self._root.is_leaving = True  # a launcher that just ends is a failure
                peer.close()
            case local.Goodbye():
                if peer.rank is not None and self._ranks.get(peer.rank) is peer:
                    del self._ranks[peer.rank]
                peer.close()
            case _ if peer.rank is None or self._ranks.get(peer.rank) is not peer:
                pass
            case local.Attach():
                return self._core.attach(peer.rank, peer.world_size, message.slot_bytes)
            case local.Staged():
                return self._on_staged(message.seal)
            case local.RestoreRequest():
                return self._core.restore(peer.rank)
            case local.SaveCounts(saves, skipped, failed):
                counts = (self._core.generation, peer.rank, saves, skipped, failed)
                self._root.send(m.SaveCounts(*counts))
            case local.Finished():
                self._root.send(m.Finished(self._core.generation, peer.rank))
            case local.Damaged():
                return self._core.damaged(peer.rank, message.ticket, message.reason)
            case local.DamagedDrained(step, reason, steps):
                return self._core.drained_damaged(step, reason, steps)
        return []

    def _is_held(self, rank: int, peer: LocalPeer) -> bool:
        """Return whether another process is this rank; a child that it starts inherits RANK."""
        former = self._ranks.get(rank)
        return former is not None and former.pid != peer.pid

    def _on_staged(self, seal: Seal) -> list[act.Action]:
        if self._checkpoints.find(seal.rank, seal.ticket) is None:
            return []  # abandoned while it was staged
        return self._core.staged(self._checkpoints.seal(seal).seal.holding)

    def _on_local_end(self, peer: LocalPeer) -> None:
        peer.watch_no_longer()
        if peer is self._launcher:
            self._launcher = None
        elif self._warm.remove(peer):
            pass
        elif peer.rank is not None and self._ranks.get(peer.rank) is peer:
            del self._ranks[peer.rank]
            if not self._warm.parents:  # a warm parent knows more: the exit code
                self._act(self._core.rank_lost(peer.rank))

    # What the state machine wants done.

    def _act(self, actions: list[act.Action]) -> None:
        for action in actions:
            self._events.action(action)
            match action:
                case act.ToRootAgent(message):
                    self._root.send(message)
                case act.GrantSlot():
                    self._grant(action)
                case act.TellReplicated(rank, ticket):
                    self._tell_rank(rank, local.Replicated(ticket))
                case act.TellResolved(rank, ticket, step, committed):
                    self._tell_rank(rank, local.Resolved(ticket, step, committed))
                case act.ServeRestore():
                    self._serve_restore(action)
                case act.StartFetch():
                    self._start(self._transfers, self._fetch, action)
                case act.StartDrain():
                    self._drain(action)
                case act.TellNothingToDrain(rank, newest_step):
                    self._tell_rank(rank, local.NothingToDrain(newest_step))
                case act.TellRefused(rank, reason):
                    self._tell_rank(rank, local.Refused(OutOfMemoryError.__name__, reason))
                case act.BreakGeneration(reason, is_final):
                    self._given_up = reason if is_final else ""
                    for peer in self._ranks.values():
                        peer.send(local.Broken(reason))
                    self._tell_launcher(local.LauncherBroken(reason, is_final))

    def _tell_rank(self, rank: int, message: local.FromAgent, fd: int | None = None) -> None:
        peer = self._ranks.get(rank)
        if peer is not None:
            peer.send(message, fd)

    def _grant(self, grant: act.GrantSlot) -> None:
        slot = self._checkpoints.slot(grant.rank, grant.slot)
        message = local.Granted(grant.ticket, grant.not_before_step, slot.capacity_bytes)
        self._tell_rank(grant.rank, message, slot.fd)

    def _serve_restore(self, serve: act.ServeRestore) -> None:
        entry = self._checkpoints.entry(serve.rank, serve.ticket) if serve.ticket else None
        message: local.FromAgent = local.RestoreNothing()
        source, step, fd = "nothing", None, None
        if entry is not None:
            fetched = (serve.rank, serve.ticket) in self._received
            source, step, fd = "peer" if fetched else "local", entry.seal.step, entry.slot.fd
            message = local.RestoreFrom(entry.seal, entry.slot.capacity_bytes, source)
        elif serve.drained_step is not None:
            source, step = "drained", serve.drained_step
            message = local.RestoreDrained(self._config.drain_directory, serve.drained_step)
        self._events.write("restore_served", rank=serve.rank, step=step, source=source)
        self._tell_rank(serve.rank, message, fd)

    # Threads: each does its work, then hands its result back to the loop.

    def _start(
        self, pool: ThreadPoolExecutor, work: Callable[[_Work], Callable[[], None]], action: _Work
    ) -> None:
        done = pool.submit(lambda: self._in_loop(work(action)))
        done.add_done_callback(Future.result)  # else a defect would be told to nobody

    def _in_loop(self, action: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the agent is ending
            self._loop.call_soon_threadsafe(action)

    def _fetch(self, fetch: act.StartFetch) -> Callable[[], None]:
        def on_progress(seal: Seal, num_bytes: int) -> None:
            self._arriving[fetch.rank] = (fetch, seal, num_bytes)
            if self._core.awaits(fetch.rank, fetch.ticket):  # else nobody need wake up
                self._in_loop(lambda: self._tell_arrival(fetch.rank))

        fetched = fetch_shard(fetch, self._checkpoints, self._bulk, on_progress)
        return lambda: self._on_fetched(fetch, fetched)

    def _tell_arrival(self, rank: int) -> None:
        """Let a rank that waits for a copy under way read along."""
        peer, arriving = self._ranks.get(rank), self._arriving.get(rank)
        if peer is None or arriving is None or not self._core.awaits(rank, arriving[0].ticket):
            return
        fetch, seal, num_bytes = arriving
        if self._reads_along.get(rank) is not fetch:
            self._reads_along[rank] = fetch
            slot = self._checkpoints.slot(rank, fetch.slot)
            peer.send(local.RestoreArriving(seal, slot.capacity_bytes), slot.fd)
        peer.send(local.RestoreProgress(num_bytes))

    def _on_fetched(self, fetch: act.StartFetch, fetched: Fetched) -> None:
        if self._arriving.get(fetch.rank, (None,))[0] is fetch:
            del self._arriving[fetch.rank]
        is_wanted = self._checkpoints.find(fetch.rank, fetch.ticket) == fetch.slot
        if fetched.seal is not None and is_wanted:
            formed = self._core.formed
            if formed and formed.resume and formed.resume.ticket == fetch.ticket:
                self._received.add((fetch.rank, fetch.ticket))
            holding = self._checkpoints.seal(fetched.seal).seal.holding
            self._act(self._core.fetched(fetch, holding))
        else:
            reason = fetched.reason or "no longer wanted"
            self._act(self._core.fetched(fetch, None, reason, fetched.damaged_sources))

    def _on_scrubbed_damage(self, rank: int, ticket: int, reason: str) -> None:
        self._in_loop(lambda: self._act(self._core.found_damaged(rank, ticket, reason)))

    def _drain(self, work: act.StartDrain) -> None:
        copy = self._drain_step.begin(work)

        def drain(work: act.StartDrain) -> Callable[[], None]:
            ok = copy()
            return lambda: self._act(self._core.drained(work, ok))

        self._start(self._drains, drain, work)


def main() -> None:
    """Run the worker agent with the configuration in the first argument."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s worker %(levelname)s %(message)s")
    config = worker_config(sys.argv[1])
    allow_all_descriptors()

    async def serve() -> None:
        await WorkerAgent(config, load_secret()).run()

    status = 1
    try:
        asyncio.run(serve())
        status = 0
    except Exception:
        logger.exception("the worker agent ends")
    # Transfers that still run hold nothing that outlives the process.
    os._exit(status)


if __name__ == "__main__":
    main()
