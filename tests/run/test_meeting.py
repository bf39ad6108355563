"""A store whose address is listened at before the store is served."""

import socket
import threading
from datetime import timedelta

import pytest
from torch.distributed import TCPStore

from twinckpt.meeting import MeetingPoint


def meet_at(monkeypatch, endpoint: str) -> tuple[str, int]:
    """Let the environment say where this generation's ranks meet."""
    host, port = endpoint.rsplit(":", 1)
    for name, value in (("MASTER_ADDR", host), ("MASTER_PORT", port), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    return host, int(port)


def test_who_comes_before_it_is_served_is_not_refused(monkeypatch):
    """A client waits in the queue and is answered; one in this process finds the server."""
    point = MeetingPoint("127.0.0.1")
    host, port = meet_at(monkeypatch, point.endpoint)
    found = []

    def come_early():
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=60))
        found.append(store.get("key"))

    early = threading.Thread(target=come_early)
    early.start()
    served = point.serve()
    assert served is not None
    own = TCPStore(host, port, is_master=True, multi_tenant=True, wait_for_workers=False)
    own.set("key", "value")
    early.join(60)
    assert found == [b"value"]


def test_it_is_not_served_where_others_meet_elsewhere(monkeypatch):
    """The address is not listened at any longer, either."""
    point = MeetingPoint("127.0.0.1")
    address = meet_at(monkeypatch, point.endpoint)
    monkeypatch.setenv("MASTER_PORT", "1")
    socket.create_connection(address).close()
    assert point.serve() is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
