"""Bulk transfer of shards: the receiver asks a peer's agent and takes the bytes into its slot.

The sender gives its slot to the kernel (`sendfile`), the receiver verifies every chunk as it
arrives, while it is in the cache; nothing is copied in between. Blocking sockets in threads:
the transfers run beside the agent's event loop and release the interpreter's lock.
"""

import contextlib
import logging
import os
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from twinckpt.core.messages import Address
from twinckpt.errors import DamagedCopyError
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import Seal
from twinckpt.net import wire
from twinckpt.net.auth import HANDSHAKE_TIMEOUT_S, authenticate, client_exchange, server_exchange

logger = logging.getLogger(__name__)

_REQUEST = struct.Struct(">QQ")
_MAX_SEAL_BYTES = 16 << 20
TRANSFER_TIMEOUT_S = 30.0


class BulkServer:
    """Serves the sealed shards of one machine's memory to authenticated peers."""

    def __init__(self, checkpoints: InMemoryCheckpoint, secret: bytes, host: str) -> None:
        self._checkpoints = checkpoints
        self._secret = secret
        self._listener = socket.create_server((host, 0), backlog=64)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="bulk-accept", daemon=True).start()

    def close(self) -> None:
        """Stop accepting; transfers under way end with their connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(sock,), name="bulk", daemon=True).start()

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            try:
                sock.settimeout(HANDSHAKE_TIMEOUT_S)
                authenticate(sock, server_exchange(self._secret))
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while True:
                    sock.settimeout(None)
                    request = _receive_exactly(sock, _REQUEST.size)
                    sock.settimeout(TRANSFER_TIMEOUT_S)
                    self._send(sock, *_REQUEST.unpack(request))
            except EOFError:
                pass
            except Exception as error:
                logger.info("bulk connection ended: %s", error)

    def _send(self, sock: socket.socket, rank: int, ticket: int) -> None:
        try:
            with self._checkpoints.pinned(rank, ticket) as entry:
                sock.sendall(wire.frame(msgspec.msgpack.encode(entry.seal)))
                _send_file(sock, entry.slot.fd, entry.seal.size_bytes)
        except DamagedCopyError:
            sock.sendall(wire.frame(b""))


class BulkClient:
    """Fetches shards from peers; keeps one idle connection a peer. Thread-safe."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._idle: dict[tuple[str, int], list[socket.socket]] = {}
        self._lock = threading.Lock()

    def fetch(
        self,
        address: Address,
        rank: int,
        ticket: int,
        buffer: memoryview,
        on_chunk: Callable[[int, memoryview], None] | None = None,
    ) -> Seal:
        """Receive a shard into `buffer` and return its seal, every chunk verified.

        `on_chunk(offset_bytes, chunk)` is called for each chunk once it is verified.
        Raises DamagedCopyError if the peer has no intact copy, ProtocolError if it does not
        fit, OSError or EOFError if the connection fails.
        """
        sock = self._connect(address)
        try:
            sock.sendall(_REQUEST.pack(rank, ticket))
            seal = _receive_seal(sock, address, rank, ticket)
            if seal.size_bytes > len(buffer):
                raise wire.ProtocolError(
                    f"rank {rank}'s shard has {seal.size_bytes} bytes, the slot {len(buffer)}"
                )
            _receive_verified(sock, seal, buffer, address, on_chunk)
        except BaseException:
            sock.close()
            raise
        with self._lock:
            self._idle.setdefault((address.host, address.bulk_port), []).append(sock)
        return seal

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for socks in self._idle.values():
                for sock in socks:
                    sock.close()
            self._idle = {}

    def _connect(self, address: Address) -> socket.socket:
        key = (address.host, address.bulk_port)
        with self._lock:
            while self._idle.get(key):
                sock = self._idle[key].pop()
                if _is_open(sock):
                    return sock
                sock.close()
        sock = socket.create_connection(key, timeout=HANDSHAKE_TIMEOUT_S)
        try:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            authenticate(sock, client_exchange(self._secret))
            sock.settimeout(TRANSFER_TIMEOUT_S)
        except BaseException:
            sock.close()
            raise
        return sock


def _send_file(sock: socket.socket, fd: int, size_bytes: int) -> None:
    sent = 0
    # sendfile on a socket with a timeout needs to wait for room by hand; a blocking one does not.
    sock.setblocking(True)
    sock.setsockopt(
        socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", int(TRANSFER_TIMEOUT_S), 0)
    )
    while sent < size_bytes:
        count = os.sendfile(sock.fileno(), fd, sent, min(1 << 20, size_bytes - sent))
        if count == 0:
            raise EOFError("the slot is shorter than its seal says")
        sent += count


def _receive_seal(sock: socket.socket, address: Address, rank: int, ticket: int) -> Seal:
    length = wire.frame_length(_receive_exactly(sock, 4), _MAX_SEAL_BYTES)
    payload = _receive_exactly(sock, length)
    if not payload:
        raise DamagedCopyError(
            f"machine {address.machine} has no copy of rank {rank} at ticket {ticket}"
        )
    seal = msgspec.msgpack.decode(payload, type=Seal)
    if (seal.rank, seal.ticket) != (rank, ticket) or seal.chunk_bytes < 1:
        raise wire.ProtocolError(f"machine {address.machine} answered with another shard")
    return seal


def _receive_verified(
    sock: socket.socket,
    seal: Seal,
    buffer: memoryview,
    address: Address,
    on_chunk: Callable[[int, memoryview], None] | None,
) -> None:
    for index, start in enumerate(range(0, seal.size_bytes, seal.chunk_bytes)):
        chunk = buffer[start : min(start + seal.chunk_bytes, seal.size_bytes)]
        _receive_into(sock, chunk)
        try:
            seal.verify_chunk(buffer, index)
        except DamagedCopyError as error:
            raise DamagedCopyError(f"from machine {address.machine}: {error}") from error
        if on_chunk is not None:
            on_chunk(start, chunk)


def _receive_into(sock: socket.socket, view: memoryview) -> None:
    while len(view):
        count = sock.recv_into(view, 0, socket.MSG_WAITALL)
        if count == 0:
            raise EOFError("the peer closed the connection")
        view = view[count:]


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    _receive_into(sock, memoryview(buffer))
    return bytes(buffer)


def _is_open(sock: socket.socket) -> bool:
    """Return whether an idle connection is neither closed nor out of step."""
    with contextlib.suppress(OSError):
        sock.setblocking(False)
        try:
            sock.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            sock.settimeout(TRANSFER_TIMEOUT_S)
            return True
    return False
