"""The worker agent's connection to the root: heartbeats, and a new one when it breaks."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

from twinckpt.agents.config import WorkerAgentConfig
from twinckpt.core import messages as m
from twinckpt.errors import AuthenticationError
from twinckpt.net import wire
from twinckpt.net.auth import call_async
from twinckpt.net.tls import Tls

logger = logging.getLogger(__name__)

_RETRY_S = 0.1
# Two seconds of a peer that answers something else, a minute and a half of one that is silent.
_MAX_REFUSALS = 20


class RootLink:
    """Keeps one authenticated connection to the root agent for as long as it runs."""

    def __init__(
        self,
        config: WorkerAgentConfig,
        secret: bytes,
        tls: Tls | None,
        hello: Callable[[], Awaitable[Sequence[m.ToRoot]]],
        on_message: Callable[[m.ToWorker], None],
        on_lost: Callable[[], None],
        on_refused: Callable[[str], None],
    ) -> None:
        self._config = config
        self._secret = secret
        self._tls = tls
        self._hello = hello
        self._on_message = on_message
        self._on_lost = on_lost
        self._on_refused = on_refused
        # Whether another service may be there: until it has proved the secret once, and never where
        # roots are elected, since another one may come.
        self._is_perhaps_another = not config.store
        self._num_refusals = 0
        self._writer: asyncio.StreamWriter | None = None
        self._told = ""
        self.is_leaving = False  # if so, the root may end first, unlogged
        self.address = (config.root_host, config.root_port)

    @property
    def is_connected(self) -> bool:
        """Whether the root agent listens."""
        return self._writer is not None

    def move(self, host: str, port: int) -> None:
        """Connect to another root agent from now on."""
        if self.address != (host, port):
            self.address = (host, port)
            if self._writer is not None:
                self._writer.transport.abort()

    def send(self, message: m.ToRoot) -> None:
        """Send, or drop: what counts is told again by `hello` on the next connection."""
        if self._writer is not None:
            self._writer.write(wire.frame(wire.TO_ROOT.encode(message)))

    async def flush(self) -> None:
        """Wait until what was sent has left, if the root still listens."""
        if self._writer is not None:
            try:
                async with asyncio.timeout(1.0):
                    self._writer.close()
                    await self._writer.wait_closed()
            except (OSError, TimeoutError):
                pass

    async def run(self) -> None:
        """Connect, serve, and connect again until cancelled."""
        while True:
            try:
                await self._serve()
            except AuthenticationError as error:
                reason = f"no agreement with {self._whom()}: {error}"
                self._tell(logging.ERROR, reason)
                self._num_refusals += 1
                if self._is_perhaps_another and self._num_refusals == _MAX_REFUSALS:
                    self._on_refused(reason)
            except EOFError:  # its text counts the bytes of a frame
                self._tell(logging.INFO, f"no connection to {self._whom()}: it closed it")
            except (OSError, wire.ProtocolError) as error:
                self._tell(logging.INFO, f"no connection to {self._whom()}: {error}")
            if self._writer is not None:
                self._writer.close()
                self._writer = None
                self._on_lost()
            await asyncio.sleep(_RETRY_S)

    def _whom(self) -> str:
        return "the root agent at {}:{}".format(*self.address)

    def _tell(self, level: int, what: str) -> None:
        """Log once what every attempt meets."""
        if what != self._told and not self.is_leaving:
            logger.log(level, "%s", what)
            self._told = what

    async def _serve(self) -> None:
        if not self.address[1]:
            raise OSError("none is elected yet")
        address = self.address
        reader, writer = await call_async(*address, self._secret, self._tls, wire.MAX_FRAME_BYTES)
        # Without it a host that is cut off would count as there for a quarter of an hour.
        timeout_ms = int(1000 * self._config.heartbeat_timeout_s)
        connection = writer.get_extra_info("socket")
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
        self._told = ""
        self._is_perhaps_another = False
        hello = await self._hello()
        self._writer = writer
        if self.address != address:  # another root was elected meanwhile
            return
        for message in hello:
            self.send(message)
        beating = asyncio.create_task(self._beat())
        try:
            while True:
                self._on_message(wire.TO_WORKER.decode(await wire.read_frame(reader)))
        finally:
            beating.cancel()

    async def _beat(self) -> None:
        while True:
            self.send(m.Heartbeat())
            await asyncio.sleep(self._config.heartbeat_interval_s)
