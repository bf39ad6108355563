"""A ring of plain TCP connections between the ranks, to measure what the network alone takes."""

import socket
import threading
from collections.abc import Iterable

import torch.distributed as dist

SEND_BYTES = 1 << 19  # the fastest of the sizes tried, from 256 KiB to 2 MiB


class LoopbackRing:
    """Every rank sends a buffer to the next rank and receives one, all at once.

    Buffers are allocated and touched beforehand, and nothing is checked. This is the floor for any
    transfer of equally many bytes between equally many processes.
    """

    def __init__(self, num_bytes: int) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        self.outgoing = _touched(num_bytes)
        self._incoming = _touched(num_bytes)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            ports: list[int] = [0] * size
            dist.all_gather_object(ports, listener.getsockname()[1])
            self._to_next = socket.create_connection(("127.0.0.1", ports[(rank + 1) % size]))
            self._from_previous, _ = listener.accept()
        self._to_next.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def transfer_to(self, receiver: int) -> None:
        """Send once from the rank before `receiver` to it; the others do nothing."""
        rank, size = dist.get_rank(), dist.get_world_size()
        if rank == (receiver - 1) % size:
            _send(self._to_next, self.outgoing)
        if rank == receiver:
            _receive(self._from_previous, self._incoming)

    def give_back(self, owner: int, live: Iterable[memoryview]) -> None:
        """Send a rank's last transfer back to it, into `live`; ranks not involved do nothing."""
        rank, size = dist.get_rank(), dist.get_world_size()
        if rank == (owner + 1) % size:
            _send(self._from_previous, self._incoming)
        if rank == owner:
            for part in live:
                _receive(self._to_next, part)

    def transfer(self) -> None:
        """Send and receive once, all ranks at the same time."""
        sender = threading.Thread(target=_send, args=(self._to_next, self.outgoing))
        sender.start()
        _receive(self._from_previous, self._incoming)
        sender.join()

    def close(self) -> None:
        """Close the connections."""
        self._to_next.close()
        self._from_previous.close()


def _receive(connection: socket.socket, view: memoryview) -> None:
    while len(view):
        received = connection.recv_into(view[:SEND_BYTES], 0, socket.MSG_WAITALL)
        if not received:
            raise ConnectionError("the other rank is gone")
        view = view[received:]


def _send(connection: socket.socket, view: memoryview) -> None:
    for start in range(0, len(view), SEND_BYTES):
        connection.sendall(view[start : start + SEND_BYTES])


def _touched(num_bytes: int) -> memoryview:
    return memoryview(bytearray(b"\1") * num_bytes)
