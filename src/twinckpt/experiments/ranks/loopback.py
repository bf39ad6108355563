"""A ring of plain TCP connections between the ranks: what the network itself would take."""

import socket
import threading

import torch.distributed as dist

SEND_BYTES = 1 << 19  # the fastest for this ring too, of a quarter to two mebibytes


class LoopbackRing:
    """Every rank sends a buffer to the next rank and receives one, all at once.

    Buffers are allocated and touched beforehand, and nothing is checked: the floor for any
    transfer of as many bytes between as many processes.
    """

    def __init__(self, num_bytes: int) -> None:
        rank, size = dist.get_rank(), dist.get_world_size()
        self._outgoing = _touched(num_bytes)
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
            self._send()
        if rank == receiver:
            self._receive()

    def transfer(self) -> None:
        """Send and receive once, all ranks at the same time."""
        sender = threading.Thread(target=self._send)
        sender.start()
        self._receive()
        sender.join()

    def close(self) -> None:
        """Close the connections."""
        self._to_next.close()
        self._from_previous.close()

    def _receive(self) -> None:
        view = self._incoming
        while len(view):
            view = view[self._from_previous.recv_into(view[:SEND_BYTES], 0, socket.MSG_WAITALL) :]

    def _send(self) -> None:
        for start in range(0, len(self._outgoing), SEND_BYTES):
            self._to_next.sendall(self._outgoing[start : start + SEND_BYTES])


def _touched(num_bytes: int) -> memoryview:
    return memoryview(bytearray(b"\1") * num_bytes)
