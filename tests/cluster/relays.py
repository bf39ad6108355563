"""Relays in front of an emulated machine: they see what passes, hold it back, and cut it.

`RootRelay` stands between a worker agent and the root and knows the messages; `BulkRelay` stands
before an agent's slots and counts bytes. Both live in threads of the test's own process.
"""

import contextlib
import socket
import threading
from collections.abc import Callable
from dataclasses import replace

import msgspec

from twinckpt.core import messages as m
from twinckpt.net import wire
from twinckpt.net.auth import NONCE_BYTES, PROOF_BYTES

HOST = "127.0.0.1"
_RECEIVE_BYTES = 1 << 16


class Relay:
    """Joins each connection that comes in to one towards `target_port`."""

    def __init__(self, target_port: int = 0) -> None:
        self.target_port = target_port
        self._changed = threading.Condition()
        self._sockets: set[socket.socket] = set()
        self._listener = socket.create_server((HOST, 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> int:
        """End all connections, as a broken link does; return how many there were."""
        with self._changed:
            ended = [end(sock) for sock in self._sockets]
            self._changed.notify_all()
        return len(ended) // 2

    def close(self) -> None:
        """End all connections and listen no more."""
        end(self._listener)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection((HOST, self.target_port))
            except OSError:
                near.close()  # nobody listens there now
                continue
            with self._changed:
                self._sockets |= {near, far}
            for pump in (self._upwards, self._downwards):
                threading.Thread(target=self._run, args=(pump, near, far), daemon=True).start()

    def _run(self, pump: Callable[..., None], near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError, EOFError):
            pump(near, far)
        with self._changed:
            for sock in (near, far):
                end(sock)
            self._sockets -= {near, far}

    def _upwards(self, near: socket.socket, far: socket.socket) -> None:
        """Forward what the caller sends."""
        raise NotImplementedError

    def _downwards(self, near: socket.socket, far: socket.socket) -> None:
        """Forward what the caller is sent."""
        raise NotImplementedError


class RootRelay(Relay):
    """Between one worker agent and the root; puts `bulk` before the agent's slots as well."""

    def __init__(self, root_port: int, bulk: "BulkRelay") -> None:
        self._bulk = bulk
        self._is_stopped: Callable[[object], bool] = lambda message: False
        self._waiting: dict[socket.socket, list[tuple[object, bytes]]] = {}
        self.passed: list[object] = []
        super().__init__(root_port)

    @property
    def held(self) -> list[object]:
        """The messages that wait here, oldest first."""
        with self._changed:
            return [message for queue in self._waiting.values() for message, _ in queue]

    def hold(self, is_stopped: Callable[[object], bool]) -> None:
        """Hold such messages, and what follows them the same way; heartbeats pass them."""
        self._is_stopped = is_stopped

    def release(self) -> None:
        """Let everything pass again, in order."""
        with self._changed:
            self._is_stopped = lambda message: False
            for sink, queue in self._waiting.items():
                for message, payload in queue:
                    self.passed.append(message)
                    with contextlib.suppress(OSError):
                        sink.sendall(wire.frame(payload))
            self._waiting = {}

    def _upwards(self, near: socket.socket, far: socket.socket) -> None:
        far.sendall(_receive(near, NONCE_BYTES + PROOF_BYTES))
        self._forward(near, far, wire.TO_ROOT)

    def _downwards(self, near: socket.socket, far: socket.socket) -> None:
        near.sendall(_receive(far, NONCE_BYTES))
        near.sendall(_receive(far, PROOF_BYTES))
        self._forward(far, near, wire.TO_WORKER)

    def _forward(self, source: socket.socket, sink: socket.socket, codec: wire.Codec) -> None:
        while True:
            payload = _receive(source, wire.frame_length(_receive(source, 4)))
            message = codec.decode(payload)
            if isinstance(message, m.Hello):
                self._bulk.target_port = message.address.bulk_port
                message = replace(
                    message, address=replace(message.address, bulk_port=self._bulk.port)
                )
                payload = codec.encode(message)
            with self._changed:
                is_heartbeat = isinstance(message, m.Heartbeat)
                queue = self._waiting.get(sink)
                if not is_heartbeat and (queue or self._is_stopped(message)):
                    self._waiting.setdefault(sink, []).append((message, payload))
                    continue
                if not is_heartbeat:
                    self.passed.append(message)
                sink.sendall(wire.frame(payload))

    def _run(self, pump: Callable[..., None], near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(msgspec.DecodeError, wire.ProtocolError):
            super()._run(pump, near, far)
        with self._changed:  # what was under way is lost with the connection
            for sock in (near, far):
                self._waiting.pop(sock, None)


class BulkRelay(Relay):
    """Before the slots of one machine: lets shards out byte by byte."""

    def __init__(self) -> None:
        self.num_bytes = 0
        self._left: int | None = None
        super().__init__()

    @property
    def is_holding(self) -> bool:
        """Whether as much has passed as was allowed."""
        return self._left == 0

    def hold_after(self, num_bytes: int) -> None:
        """Let so many bytes out from now on, and no more."""
        with self._changed:
            self._left = num_bytes

    def release(self) -> None:
        """Let everything pass again."""
        with self._changed:
            self._left = None
            self._changed.notify_all()

    def _upwards(self, near: socket.socket, far: socket.socket) -> None:
        while data := near.recv(_RECEIVE_BYTES):
            far.sendall(data)

    def _downwards(self, near: socket.socket, far: socket.socket) -> None:
        while data := far.recv(_RECEIVE_BYTES):
            view = memoryview(data)
            while view:
                with self._changed:
                    self._changed.wait_for(lambda: not self.is_holding)
                    count = len(view) if self._left is None else min(self._left, len(view))
                    self.num_bytes += count
                    if self._left is not None:
                        self._left -= count
                near.sendall(view[:count])
                view = view[count:]


def end(sock: socket.socket) -> None:
    """Shut a socket down; whoever waits on it wakes up."""
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _receive(sock: socket.socket, num_bytes: int) -> bytes:
    received = bytearray()
    while len(received) < num_bytes:
        part = sock.recv(num_bytes - len(received))
        if not part:
            raise EOFError
        received += part
    return bytes(received)
