"""Chunks of checkpoints sent to peers over TCP, with a reserved receive buffer and credits.

A receiver takes a chunk into a sub-buffer of its reserved buffer R and moves it on to its main
memory, at an emulated rate. A sender may have as many chunks under way as there are
sub-buffers; with one, receiving waits for copying (no pipeline).
"""

import queue
import socket
import struct
import threading
import time

import torch.distributed as dist

from twinckpt.core.interleaving import Checkpoint

_HEADER = struct.Struct(">QQQ")
_DONE = b"\1"


class ChunkReceiver:
    """Receives one peer's copy: one thread takes chunks in, another moves them to `memory`."""

    def __init__(self, sock: socket.socket, size_bytes: int, copy_bytes_per_s: float) -> None:
        self.memory = bytearray(size_bytes)
        self._socket = sock
        self._copy_bytes_per_s = copy_bytes_per_s
        self._arrived: queue.SimpleQueue[tuple[memoryview, int]] = queue.SimpleQueue()
        self._buffers: dict[int, memoryview] = {}
        for work in (self._receive, self._copy):
            threading.Thread(target=work, daemon=True).start()

    def _receive(self) -> None:
        while header := _receive_exactly(self._socket, _HEADER.size):
            offset_bytes, size_bytes, sub_buffer = _HEADER.unpack(header)
            buffer = self._buffers.get(sub_buffer)
            if buffer is None or len(buffer) < size_bytes:
                self._buffers[sub_buffer] = buffer = memoryview(bytearray(size_bytes))
            view = buffer[:size_bytes]
            _receive_into(self._socket, view)
            self._arrived.put((view, offset_bytes))

    def _copy(self) -> None:
        while True:
            chunk, offset_bytes = self._arrived.get()
            started_s = time.monotonic()
            self.memory[offset_bytes : offset_bytes + len(chunk)] = chunk
            ready_s = started_s + len(chunk) / self._copy_bytes_per_s
            time.sleep(max(0.0, ready_s - time.monotonic()))
            self._socket.sendall(_DONE)


class ChunkSender:
    """Sends to one peer; counts the chunks that occupy a sub-buffer there."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._free = threading.Condition()
        self._under_way = 0
        self._turn = 0
        threading.Thread(target=self._collect_credits, daemon=True).start()

    def wait_for_buffer(self, num_sub_buffers: int) -> None:
        """Wait until a sub-buffer is free at the receiver, and take it."""
        with self._free:
            self._free.wait_for(lambda: self._under_way < num_sub_buffers)
            self._under_way += 1
            self._turn = (self._turn + 1) % num_sub_buffers

    def send(self, shard: memoryview, offset_bytes: int, size_bytes: int) -> None:
        """Send one chunk, after `wait_for_buffer`."""
        self._socket.sendall(_HEADER.pack(offset_bytes, size_bytes, self._turn))
        self._socket.sendall(shard[offset_bytes : offset_bytes + size_bytes])

    def wait_until_copied(self) -> None:
        """Wait until the receiver has moved on all that was sent."""
        with self._free:
            self._free.wait_for(lambda: self._under_way == 0)

    def _collect_credits(self) -> None:
        while _receive_exactly(self._socket, len(_DONE)):
            with self._free:
                self._under_way -= 1
                self._free.notify_all()


class ChunkRing:
    """The connections of one rank: to the next m − 1 ranks, and from the m − 1 before it."""

    def __init__(self, checkpoint: Checkpoint, copy_bytes_per_s: float) -> None:
        """Connect; collective over all ranks."""
        rank, size = dist.get_rank(), dist.get_world_size()
        self.senders: list[ChunkSender] = []
        self.receivers: dict[int, ChunkReceiver] = {}
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ports: list[int] = [0] * size
            dist.all_gather_object(ports, listener.getsockname()[1])
            for distance in range(1, checkpoint.num_remote_copies + 1):
                to_next = socket.create_connection(("127.0.0.1", ports[(rank + distance) % size]))
                to_next.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self.senders.append(ChunkSender(to_next))
                from_previous, _ = listener.accept()
                source = (rank - distance) % size
                self.receivers[source] = ChunkReceiver(
                    from_previous, checkpoint.size_bytes, copy_bytes_per_s
                )
                dist.barrier()  # the next connection to be accepted is of the next distance


def _receive_exactly(sock: socket.socket, num_bytes: int) -> bytes:
    """Return the next `num_bytes` bytes; no bytes if the peer has closed the connection."""
    buffer = bytearray(num_bytes)
    return bytes(buffer) if _receive_into(sock, memoryview(buffer)) else b""


def _receive_into(sock: socket.socket, view: memoryview) -> bool:
    while len(view):
        try:
            count = sock.recv_into(view, 0, socket.MSG_WAITALL)
        except OSError:
            return False
        if count == 0:
            return False
        view = view[count:]
    return True
