"""Bulk transfer of shards: the receiver asks a peer's agent and takes the bytes into its slot.

The sender sends straight from its slot, a chunk at a time (`sendfile` was measured to be
slower on loopback); the receiver verifies every chunk as it arrives, while it is in the cache.
Blocking sockets in threads: the transfers run beside the agent's event loop and release the
interpreter's lock. With TLS each shard has a connection of its own, and so fresh keys: what one
pair of keys may encrypt is limited, and the interpreter's TLS cannot renew them.
"""

import contextlib
import functools
import logging
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from twinckpt.core.messages import Address
from twinckpt.errors import AuthenticationError, DamagedCopyError
from twinckpt.memory.checksums import chunks
from twinckpt.memory.in_memory import InMemoryCheckpoint
from twinckpt.memory.seal import SEAL_DECODER, Seal
from twinckpt.net import wire
from twinckpt.net.auth import HANDSHAKE_TIMEOUT_S, accept, call
from twinckpt.net.strangers import ACCEPT_RETRY_S, Strangers
from twinckpt.net.tls import Tls

logger = logging.getLogger(__name__)

_REQUEST = struct.Struct(">QQ")
_MAX_SEAL_BYTES = 16 << 20
_REPORT_BYTES = 4 << 20
_LAST_REPORT_BYTES = 1 << 20
TRANSFER_TIMEOUT_S = 30.0
_SILENCE_TIMEOUT_S = 3.0


def family_of(host: str) -> socket.AddressFamily:
    """Return whether a host's first address is IPv4 or IPv6; raises OSError if it has none."""
    return socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)[0][0]


class BulkServer:
    """Serves the sealed shards of one machine's memory to authenticated peers."""

    def __init__(
        self, checkpoints: InMemoryCheckpoint, secret: bytes, host: str, tls: Tls | None = None
    ) -> None:
        self._checkpoints = checkpoints
        self._secret = secret
        self._tls = tls
        self._listener = socket.create_server((host, 0), family=family_of(host), backlog=64)
        self._strangers = Strangers()
        self._is_closed = False
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, name="bulk-accept", daemon=True).start()

    def close(self) -> None:
        """Stop accepting; transfers under way end with their connections."""
        self._is_closed = True
        self._listener.shutdown(socket.SHUT_RDWR)  # closing does not wake the thread that accepts
        self._listener.close()

    def _accept(self) -> None:
        is_told = False
        while True:
            try:
                sock, peer = self._listener.accept()
                is_told = False
            except OSError as error:
                if self._is_closed:
                    return
                if not is_told:
                    logger.warning("no connection can be accepted: %s", error)
                is_told = True
                time.sleep(ACCEPT_RETRY_S)  # too many open files: some will be closed
                continue
            leave = self._strangers.enter(functools.partial(_hang_up, sock))
            serving = threading.Thread(target=self._serve, args=(sock, peer[0], leave), daemon=True)
            try:
                serving.start()
            except RuntimeError as error:  # no more threads are to be had: some will end
                leave()
                sock.close()
                logger.warning("no connection can be served: %s", error)
                time.sleep(ACCEPT_RETRY_S)

    def _serve(self, stranger: socket.socket, host: str, leave: Callable[[], None]) -> None:
        try:
            try:
                sock = accept(stranger, self._secret, self._tls)
            except AuthenticationError as error:
                self._strangers.refuse(host, error)
                return
            finally:
                leave()
            with sock:
                _block(sock, socket.SO_SNDTIMEO)
                while True:
                    self._send(sock, *_REQUEST.unpack(_receive_exactly(sock, _REQUEST.size)))
        except (EOFError, OSError):  # the peer has what it wanted, wants it no more, or is gone
            pass
        except Exception as error:
            logger.warning("bulk connection ended: %s", error)

    def _send(self, sock: socket.socket, rank: int, ticket: int) -> None:
        try:
            with self._checkpoints.pinned(rank, ticket) as entry:
                sock.sendall(wire.frame(msgspec.msgpack.encode(entry.seal)))
                for piece in chunks(entry.data):
                    sock.sendall(piece)
        except DamagedCopyError:
            sock.sendall(wire.frame(b""))


class TransferCancelled(OSError):
    """The transfer was ended from this side."""


@dataclass(slots=True)
class _Transfer:
    """A transfer under way; `sock` is None until its connection is made."""

    address: Address
    sock: socket.socket | None = None
    is_cancelled: bool = False


class BulkClient:
    """Fetches shards from peers; without TLS keeps idle connections. Thread-safe."""

    def __init__(self, secret: bytes, tls: Tls | None = None) -> None:
        self._secret = secret
        self._tls = tls
        self._idle: dict[tuple[str, int], list[socket.socket]] = {}
        self._busy: dict[tuple[int, int], _Transfer] = {}
        self._lock = threading.Lock()

    def fetch(
        self,
        address: Address,
        rank: int,
        ticket: int,
        buffer: memoryview,
        on_progress: Callable[[Seal, int], None] = lambda seal, num_bytes: None,
    ) -> Seal:
        """Receive a shard into `buffer` and return its seal, every chunk verified.

        `on_progress(seal, num_bytes)` is called now and then; `num_bytes` are verified by then.
        Raises DamagedCopyError if the peer has no intact copy, ProtocolError if it does not
        fit, TransferCancelled after `cancel`, OSError or EOFError if the connection fails.
        """
        transfer = _Transfer(address)
        with self._lock:
            self._busy[rank, ticket] = transfer
        try:
            with self._connected(transfer) as sock:
                sock.sendall(_REQUEST.pack(rank, ticket))
                seal = _receive_seal(sock, address, rank, ticket)
                if seal.size_bytes > len(buffer):
                    raise wire.ProtocolError(
                        f"rank {rank}'s shard has {seal.size_bytes} bytes, the slot {len(buffer)}"
                    )
                _receive_verified(sock, seal, buffer, address, on_progress)
        except (OSError, EOFError, AuthenticationError) as error:
            if transfer.is_cancelled:
                raise TransferCancelled(f"rank {rank} at ticket {ticket}: cancelled") from error
            raise
        finally:
            with self._lock:
                if self._busy.get((rank, ticket)) is transfer:
                    del self._busy[rank, ticket]
        return seal

    def cancel(self, rank: int, ticket: int, unless_from: Sequence[Address] = ()) -> None:
        """End a transfer that is under way, if there is one: its peer may be frozen.

        At once, or when its connection is made.
        """
        with self._lock:
            transfer = self._busy.get((rank, ticket))
            if transfer is not None and transfer.address not in unless_from:
                transfer.is_cancelled = True
                if transfer.sock is not None:
                    _hang_up(transfer.sock)

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            for socks in self._idle.values():
                for sock in socks:
                    sock.close()
            self._idle = {}

    @contextlib.contextmanager
    def _connected(self, transfer: _Transfer) -> Iterator[socket.socket]:
        """Give a transfer its connection, which is kept for the next one if all goes well."""
        key = (transfer.address.host, transfer.address.bulk_port)
        sock = self._connect(key)
        with self._lock:
            transfer.sock = sock
            if transfer.is_cancelled:
                _hang_up(sock)
        try:
            yield sock
        except BaseException:
            sock.close()
            raise
        with self._lock:
            transfer.sock = None  # it may be another transfer's from now on
            if self._tls:
                sock.close()
            else:
                self._idle.setdefault(key, []).append(sock)

    def _connect(self, key: tuple[str, int]) -> socket.socket:
        with self._lock:
            self._close_dead()
            if key in self._idle:
                return self._idle[key].pop()
        stranger = socket.create_connection(key, timeout=HANDSHAKE_TIMEOUT_S)
        sock = call(stranger, self._secret, self._tls)
        _block(sock, socket.SO_RCVTIMEO)
        return sock

    def _close_dead(self) -> None:
        """Give up the connections to machines that are gone, which nobody would ask for again."""
        living: dict[tuple[str, int], list[socket.socket]] = {}
        for key, socks in self._idle.items():
            for sock in socks:
                if _is_open(sock):
                    living.setdefault(key, []).append(sock)
                else:
                    sock.close()
        self._idle = living


def _hang_up(sock: socket.socket) -> None:
    """End a connection that another thread waits for."""
    with contextlib.suppress(OSError):
        socket.socket.shutdown(sock, socket.SHUT_RDWR)  # beneath TLS as well


def _block(sock: socket.socket, timeout: int) -> None:
    """Have the kernel limit each wait: Python's own time-outs cost a system call each.

    A slow peer has `TRANSFER_TIMEOUT_S`; one whose host does not even acknowledge is cut off
    sooner, so that it does not keep a slot. `timeout` is SO_RCVTIMEO or SO_SNDTIMEO.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * _SILENCE_TIMEOUT_S))
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if isinstance(sock, ssl.SSLSocket):  # would take the kernel's time-out for "try again"
        sock.settimeout(TRANSFER_TIMEOUT_S)
        return
    sock.setblocking(True)
    sock.setsockopt(socket.SOL_SOCKET, timeout, struct.pack("ll", int(TRANSFER_TIMEOUT_S), 0))


def _receive_seal(sock: socket.socket, address: Address, rank: int, ticket: int) -> Seal:
    length = wire.frame_length(_receive_exactly(sock, 4), _MAX_SEAL_BYTES)
    payload = _receive_exactly(sock, length)
    if not payload:
        raise DamagedCopyError(
            f"machine {address.machine} has no copy of rank {rank} at ticket {ticket}"
        )
    try:
        seal = SEAL_DECODER.decode(payload)
    except (msgspec.DecodeError, ValueError) as error:
        raise wire.ProtocolError(f"machine {address.machine} sent no seal: {error}") from error
    if (seal.rank, seal.ticket) != (rank, ticket):
        raise wire.ProtocolError(f"machine {address.machine} answered with another shard")
    return seal


def _receive_verified(
    sock: socket.socket,
    seal: Seal,
    buffer: memoryview,
    address: Address,
    on_progress: Callable[[Seal, int], None],
) -> None:
    next_report = 0
    for index, start in enumerate(range(0, seal.size_bytes, seal.chunk_bytes)):
        chunk = buffer[start : min(start + seal.chunk_bytes, seal.size_bytes)]
        _receive_into(sock, chunk)
        try:
            seal.verify_chunk(buffer, index)
        except DamagedCopyError as error:
            raise DamagedCopyError(f"from machine {address.machine}: {error}") from error
        num_bytes = start + len(chunk)
        if num_bytes >= next_report or num_bytes == seal.size_bytes:
            on_progress(seal, num_bytes)
            # So a rank that reads along has little left to do once the last byte is there.
            left_bytes = seal.size_bytes - num_bytes
            next_report = num_bytes + max(_LAST_REPORT_BYTES, min(_REPORT_BYTES, left_bytes // 2))


def _receive_into(sock: socket.socket, view: memoryview) -> None:
    flags = 0 if isinstance(sock, ssl.SSLSocket) else socket.MSG_WAITALL
    while len(view):
        count = sock.recv_into(view, 0, flags)
        if count == 0:
            raise EOFError("the peer closed the connection")
        view = view[count:]


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    buffer = bytearray(num_bytes)
    _receive_into(sock, memoryview(buffer))
    return bytes(buffer)


def _is_open(sock: socket.socket) -> bool:
    """Return whether an idle connection is neither closed nor out of step."""
    try:
        sock.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False
