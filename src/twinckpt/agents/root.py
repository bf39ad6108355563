"""The root agent's process: carries out what `twinckpt.core.root.Root` decides.

`python -m twinckpt.agents.root CONFIG` listens for worker agents until its launcher ends. With
a control store that elects roots it stands by until it is elected, and again once it is replaced.
"""

import asyncio
import contextlib
import errno
import functools
import logging
import os
import socket
import sys
import threading
import time
from typing import Any

import msgspec

from twinckpt.agents.candidate import stand_by
from twinckpt.agents.config import UNNAMED, RootAgentConfig, named_settings, root_config
from twinckpt.agents.control_store import Leadership, open_store
from twinckpt.agents.embedded_store import EmbeddedStore
from twinckpt.agents.event_log import EventLog, file_of
from twinckpt.agents.metrics_endpoint import serve_metrics
from twinckpt.agents.process import allow_all_descriptors, when_all_end
from twinckpt.agents.status import FROM_CALLER, StatusBoard, StatusQuestion
from twinckpt.core import messages as m
from twinckpt.core.drains import SLOW_S
from twinckpt.core.root import Action, Disconnect, Log, Root, Send
from twinckpt.errors import AuthenticationError
from twinckpt.net import wire
from twinckpt.net.auth import accept_async
from twinckpt.net.secret import load_secret
from twinckpt.net.strangers import Strangers

logger = logging.getLogger(__name__)

_SLOW_DRAIN = (
    "step %d has been on its way to persistent storage for %.0f s, and keeps its slot meanwhile: "
    "of num_slots=%d one fewer is left for checkpoints. Is the storage gone, drain_mib_per_s low?"
)
_CHANGE_THE_RECORD = ("generation_formed", "machine_left")


class RootAgent:
    """Drives the root's state machine over authenticated TCP connections."""

    def __init__(self, config: RootAgentConfig, secret: bytes, leadership: Leadership) -> None:
        self._config = config
        self._secret = secret
        self._tls = config.tls.load()
        self._leadership = leadership
        self._root = Root(config.job, record=leadership.record, now_s=time.monotonic())
        self._writers: dict[str, asyncio.StreamWriter] = {}
        self._events = EventLog(file_of(config.event_log, "root"), agent="root")
        self._board = StatusBoard(self._root)
        self._strangers = Strangers()
        self._done = asyncio.Event()
        self._is_replaced = False

    async def run(self) -> bool:
        """Serve until the watched process ends, or another root is elected: then return True."""
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(_on_exception)
        threading.Thread(target=self._hold, args=(loop,), daemon=True).start()
        when_all_end(self._config.watched, self._done.set)
        server = await asyncio.start_server(
            self._serve, sock=self._leadership.listener, limit=wire.MAX_FRAME_BYTES
        )
        port = self._leadership.listener.getsockname()[1]
        started = {"generation": self._root.generation, "port": port, "pid": os.getpid()}
        self._events.write("root_started", started)
        if self._config.metrics_port:
            host, port = self._config.metrics_host, self._config.metrics_port
            try:
                await serve_metrics(self._board.status, host, port)
            except OSError as error:
                logger.warning("no metrics at %s:%d: %s; the job goes on", host, port, error)
        await self._tick_until_done()
        server.close()
        for writer in self._writers.values():
            writer.transport.abort()
        return self._is_replaced

    def _hold(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            self._leadership.hold()
        finally:  # whatever ended it: a root that is not renewed is replaced
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process is ending
                loop.call_soon_threadsafe(self._resign)

    def _resign(self) -> None:
        """End this root's service: nobody follows it any more, so its decisions mean nothing."""
        logger.warning("another root agent is elected; this one stands by")
        whose = {"pid": os.getpid(), "machine": self._config.machine}
        self._events.write("root_replaced", {"generation": self._root.generation, **whose})
        self._is_replaced = True
        self._done.set()

    async def _tick_until_done(self) -> None:
        """Look for silent machines, a few times within the heartbeat timeout.

        A tick that comes late means that this process was held up, and with it the reading
        of heartbeats: nobody is judged until what has arrived is read.
        """
        interval_s = self._config.job.heartbeat_timeout_s / 5
        while not self._done.is_set():
            asleep_at_s = time.monotonic()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._done.wait(), interval_s)
            if time.monotonic() - asleep_at_s < 2 * interval_s:
                self._act(self._root.tick(time.monotonic()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        machine = None
        try:
            with self._strangers.entered(functools.partial(_hang_up, writer)):
                await accept_async(reader, writer, self._secret, self._tls)
            hello = FROM_CALLER.decode(await wire.read_frame(reader))
            if isinstance(hello, StatusQuestion):
                writer.write(wire.frame(msgspec.msgpack.encode(self._board.status())))
                await writer.drain()
                return
            if not isinstance(hello, m.Hello):
                raise wire.ProtocolError("the first message must be Hello")
            if self._is_of_another_job(hello):
                reason = f"{self._config.run_id!r} runs here, not {hello.run_id!r}"
                refusal = m.Refused(
                    0, f"{reason} (--rdzv-id): give it an --rdzv-endpoint of its own"
                )
                writer.write(wire.frame(wire.TO_WORKER.encode(refusal)))
                await writer.drain()
                return
            machine = hello.address.machine
            self._compare(machine, hello.settings)
            # Former connections end first, so that they cannot take this one down later.
            if machine in self._writers:
                self._writers.pop(machine).close()
            self._writers[machine] = writer
            self._act(self._root.receive(machine, hello, time.monotonic()))
            while True:
                message = wire.TO_ROOT.decode(await wire.read_frame(reader))
                self._act(self._root.receive(machine, message, time.monotonic()))
        except (AuthenticationError, wire.ProtocolError) as error:
            host = (writer.get_extra_info("peername") or ("a caller that has gone",))[0]
            self._strangers.refuse(host, error)
            writer.transport.abort()  # closing waits for the caller, who may stay for ever
        except (EOFError, OSError, asyncio.CancelledError):
            pass
        finally:
            if machine is not None and self._writers.get(machine) is writer:
                del self._writers[machine]
                self._act(self._root.connection_lost(machine, time.monotonic()))
            writer.close()

    def _is_of_another_job(self, hello: m.Hello) -> bool:
        """Return whether a machine names another job: it would wait here, or train along."""
        names = {hello.run_id, self._config.run_id} - UNNAMED
        return len(names) > 1

    def _compare(self, machine: str, settings: dict[str, str]) -> None:
        """Warn if a machine was told other settings of the job, which have no effect here."""
        here = named_settings(self._config.job)
        differing = {name: value for name, value in settings.items() if value != here.get(name)}
        if differing:
            logger.warning(
                "machine %s was started with %s, but this root agent with %s, which counts: "
                "give all machines of a job the same settings",
                machine,
                ", ".join(f"{name}={value}" for name, value in differing.items()),
                ", ".join(f"{name}={here.get(name)}" for name in differing),
            )

    def _act(self, actions: list[Action]) -> None:
        if self._done.is_set():
            return
        # Logged first: in the logs an event comes before what machines hear of it.
        for action in sorted(actions, key=lambda action: not isinstance(action, Log)):
            match action:
                case Send(machine, message):
                    writer = self._writers.get(machine)
                    if writer is not None:
                        writer.write(wire.frame(wire.TO_WORKER.encode(message)))
                case Log(event, fields):
                    self._board.note(event, fields)
                    if event == "waiting_for_machines":
                        logger.warning("the job waits for machines: %s", fields["reason"])
                    if event == "drain_is_slow":
                        logger.warning(_SLOW_DRAIN, fields["step"], SLOW_S, fields["num_slots"])
                    if event != "save_counts":  # every second from every rank
                        self._events.write(event, fields)
                    if event in _CHANGE_THE_RECORD:
                        self._leadership.leave(self._root.record)
                case Disconnect(machine):
                    writer = self._writers.pop(machine, None)
                    if writer is not None:
                        writer.transport.abort()


def _on_exception(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Warn where no descriptor is left: asyncio would print a traceback for each caller."""
    error = context.get("exception")
    if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
        _tell_of_descriptors()
    else:
        loop.default_exception_handler(context)


@functools.cache
def _tell_of_descriptors() -> None:
    """Warn that no descriptor is left, once in a process."""
    logger.warning("no descriptor is left for further connections: raise ulimit -n")


def _hang_up(writer: asyncio.StreamWriter) -> None:
    """End a connection so that its handler notices, in a handshake as well."""
    with contextlib.suppress(OSError):
        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Run the root agent with the configuration in the first argument."""
    logging.basicConfig(format="%(asctime)s root %(levelname)s %(message)s")
    config = root_config(sys.argv[1])
    allow_all_descriptors()

    store = open_store(config.store) if config.store else EmbeddedStore(config.host, config.port)
    secret = load_secret()

    async def serve(leadership: Leadership) -> bool:
        return await RootAgent(config, secret, leadership).run()

    try:
        with contextlib.suppress(KeyboardInterrupt):
            while (leadership := stand_by(store, config)) is not None:
                if not asyncio.run(serve(leadership)):
                    break
    except OSError as error:
        sys.exit(f"twinckpt: the root agent cannot listen on {config.host}:{config.port}: {error}")
    os._exit(0)  # connections are served until the last moment; the kernel closes them


if __name__ == "__main__":
    main()
