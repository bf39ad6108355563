"""The worker agent's side of the machine-local socket: ranks and launcher come in here."""

import asyncio
import contextlib
import logging
import os
import socket
import struct
import time
from collections.abc import Callable

from twinckpt.errors import AuthenticationError
from twinckpt.net.auth import HANDSHAKE_TIMEOUT_S, server_exchange
from twinckpt.net.local import FROM_AGENT, TO_AGENT, FromAgent, ToAgent
from twinckpt.net.local_socket import MAX_MESSAGE_BYTES, listen
from twinckpt.net.strangers import ACCEPT_RETRY_S, Strangers
from twinckpt.net.wire import ProtocolError

logger = logging.getLogger(__name__)

_CREDENTIALS = struct.Struct("3i")  # process, user, group
_SUPERUSER = 0


class LocalPeer:
    """One connected process of this machine."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self.rank: int | None = None
        self.pid, _ = _process_and_user_of(sock)
        self.heard_at_s = time.monotonic()
        self.world_size = 0
        self.watch_no_longer: Callable[[], None] = lambda: None  # ends the watch on its process

    def close(self) -> None:
        """End the conversation; the process sees the end of the connection."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def send(self, message: FromAgent, fd: int | None = None) -> None:
        """Send a message, with a descriptor if one is given; a full queue drops the peer."""
        try:
            socket.send_fds(self._socket, [FROM_AGENT.encode(message)], [fd] if fd else [])
        except (BrokenPipeError, ConnectionResetError):  # it has ended, as reading tells
            pass
        except OSError as error:
            logger.warning("rank %s does not read its messages: %s", self.rank, error)
            self.close()


class LocalServer:
    """Accepts processes of this machine; calls `on_message` and `on_end` in the event loop."""

    def __init__(
        self,
        name: str,
        secret: bytes,
        on_message: Callable[[LocalPeer, ToAgent], None],
        on_end: Callable[[LocalPeer], None],
    ) -> None:
        self._secret = secret
        self._on_message = on_message
        self._on_end = on_end
        self._listener = listen(name)
        self._strangers = Strangers()
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Accept until cancelled."""
        loop = asyncio.get_running_loop()
        is_told = False
        while True:
            try:
                sock, _ = await loop.sock_accept(self._listener)
                is_told = False
            except OSError as error:
                if not is_told:
                    logger.warning("no local process can be accepted: %s", error)
                is_told = True
                await asyncio.sleep(ACCEPT_RETRY_S)  # too many open files: some will be closed
                continue
            if _process_and_user_of(sock)[1] not in (os.getuid(), _SUPERUSER):
                sock.close()
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
            task = asyncio.create_task(self._serve(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, sock: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with sock:
            try:
                with self._strangers.entered(lambda: sock.shutdown(socket.SHUT_RDWR)):
                    await self._authenticate(loop, sock)
            except AuthenticationError as error:
                self._strangers.refuse("a local process", error)
                return
            except OSError:  # it has ended, or says nothing
                return
            peer = LocalPeer(sock)
            try:
                while payload := await _received(loop, sock):
                    peer.heard_at_s = time.monotonic()
                    self._on_message(peer, TO_AGENT.decode(payload))
            except ProtocolError as error:
                logger.warning("rank %s: %s", peer.rank, error)
            finally:
                self._on_end(peer)

    async def _authenticate(self, loop: asyncio.AbstractEventLoop, sock: socket.socket) -> None:
        exchange = server_exchange(self._secret)
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            with contextlib.suppress(StopIteration):
                step = next(exchange)
                while True:
                    if isinstance(step, int):
                        received = await loop.sock_recv(sock, step)
                        if len(received) != step:
                            raise AuthenticationError("a broken handshake")
                        step = exchange.send(received)
                    else:
                        await loop.sock_sendall(sock, step)
                        step = next(exchange)


async def _received(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """Return the next message; an empty one once the process has ended."""
    try:
        return await loop.sock_recv(sock, MAX_MESSAGE_BYTES)
    except OSError:  # killed with messages unread
        return b""


def _process_and_user_of(sock: socket.socket) -> tuple[int, int]:
    """Return the number of the process that has called, as it is seen from here, and its user.

    The number is 0 for a process of another container that is not visible here. The user must be
    checked, since an abstract name is open to all users of the host.
    """
    found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    pid, user, _ = _CREDENTIALS.unpack(found)
    return pid, user
