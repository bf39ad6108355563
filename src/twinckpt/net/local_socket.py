"""The Unix socket between a worker agent and the processes of its machine.

Whole messages (SOCK_SEQPACKET), authenticated like any connection, with file descriptors of
slots attached. The socket has an abstract name, so no file stays behind.
"""

import contextlib
import os
import select
import socket
import struct
import threading

from twinckpt.errors import AgentUnavailableError, TwinckptError
from twinckpt.net.auth import HANDSHAKE_TIMEOUT_S, authenticate, client_exchange
from twinckpt.net.local import FROM_AGENT, TO_AGENT, FromAgent, Goodbye, ToAgent
from twinckpt.net.wire import ProtocolError

_DESCRIPTOR = struct.Struct("i")
MAX_MESSAGE_BYTES = 1 << 20
GOODBYE_TIMEOUT_S = 5.0
SEND_TIMEOUT_S = 30  # a frozen agent's queue takes a few messages, and then none


def listen(name: str) -> socket.socket:
    """Return a non-blocking listening socket of this name."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind("\0" + name)
    listener.listen(64)
    listener.setblocking(False)
    return listener


def _descriptor(ancillary: list[tuple[int, int, bytes]]) -> int | None:
    """Return the descriptor that came with a message, if one did."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            return int(_DESCRIPTOR.unpack_from(data)[0])
    return None


class _SpareDescriptor:
    """A descriptor held in reserve for a slot's, in case the program uses up all there are."""

    def __init__(self) -> None:
        self._fd: int | None = None
        self.take()

    def take(self) -> None:
        if self._fd is None:
            with contextlib.suppress(OSError):
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def give(self) -> None:
        if self._fd is not None:
            os.close(self._fd)
            self._fd = None


class AgentLink:
    """A blocking connection to this machine's worker agent."""

    def __init__(self, name: str, secret: bytes) -> None:
        """Connect and authenticate.

        Raises AgentUnavailableError if nobody listens, AuthenticationError if the secrets differ.
        """
        self._receiving = threading.Lock()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with contextlib.ExitStack() as otherwise:  # else each failed attempt would leak a socket
            otherwise.callback(self._socket.close)
            self._socket.settimeout(HANDSHAKE_TIMEOUT_S)
            try:
                self._socket.connect("\0" + name)
            except OSError as error:
                raise AgentUnavailableError(
                    f"this machine's worker agent ({name}) cannot be reached: {error}; it ends "
                    "with its launcher: is torchrun still running?"
                ) from error
            authenticate(self._socket, client_exchange(secret))
            self._socket.setblocking(True)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, MAX_MESSAGE_BYTES)
            limit = struct.pack("ll", SEND_TIMEOUT_S, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            otherwise.pop_all()
        self._spare = _SpareDescriptor()

    def fileno(self) -> int:
        """Return the descriptor, for select."""
        return self._socket.fileno()

    def send(self, message: ToAgent) -> None:
        """Send one message, from any thread.

        Raises AgentUnavailableError if nobody is there, or reads what was sent.
        """
        try:
            self._socket.send(TO_AGENT.encode(message))
        except BlockingIOError as error:
            raise AgentUnavailableError(
                f"the worker agent has read nothing for {SEND_TIMEOUT_S} s: is it frozen?"
            ) from error
        except OSError as error:
            raise AgentUnavailableError(f"the worker agent is gone: {error}") from error

    def receive(self, timeout_s: float | None) -> tuple[FromAgent, int | None] | None:
        """Return the next message and its descriptor; None if none came in time.

        A timeout of 0 asks without waiting, None waits for ever; where several threads receive,
        one of them gets the message, the others None. Raises AgentUnavailableError if the agent
        is gone, or this end is closed.
        """
        timeout_ms = None if timeout_s is None else timeout_s * 1000
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
        except ValueError as error:  # closed by another thread, or a signal's handler
            raise AgentUnavailableError("this process has left the worker agent") from error
        if not poll.poll(timeout_ms):
            return None
        if not self._receiving.acquire(blocking=False):
            return None  # another thread is at it, or what a signal's handler has interrupted
        try:
            payload, ancillary, flags = self._receive_now()
        except BlockingIOError:
            return None  # another thread was faster
        except OSError as error:
            raise AgentUnavailableError(f"the worker agent is gone: {error}") from error
        finally:
            self._receiving.release()
        if not payload:
            raise AgentUnavailableError("the worker agent is gone: it closed the connection")
        if flags & socket.MSG_CTRUNC:
            raise TwinckptError("no descriptor is left for a slot: raise ulimit -n")
        try:
            return FROM_AGENT.decode(payload), _descriptor(ancillary)
        except ProtocolError as error:
            raise AgentUnavailableError(str(error)) from error

    def _receive_now(self) -> tuple[bytes, list[tuple[int, int, bytes]], int]:
        how = socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        room_bytes = socket.CMSG_LEN(_DESCRIPTOR.size)
        self._spare.give()
        try:  # `socket.recv_fds` of Python 3.11 passes no flags on
            return self._socket.recvmsg(MAX_MESSAGE_BYTES, room_bytes, how)[:3]
        finally:
            self._spare.take()

    def say_goodbye(self) -> None:
        """End on purpose: returns once the agent has read it, or is gone."""
        with contextlib.suppress(AgentUnavailableError):
            self.send(Goodbye())
            # Closing with unread messages would discard the goodbye.
            while (unread := self.receive(GOODBYE_TIMEOUT_S)) is not None:
                if unread[1] is not None:
                    os.close(unread[1])
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()
        self._spare.give()
