"""A process's connection to its machine's agent, which this process plays."""

import pytest

from helpers import played_agent
from twinckpt.errors import AgentUnavailableError
from twinckpt.net import local, local_socket

SECRET = b"a secret of the job that is long"


def talk_on_and_on(link):
    while True:
        link.send(local.SaveCounts(1, 0, 0))


def test_who_talks_to_a_frozen_agent_is_told_so(monkeypatch):
    """A training loop used to wait for ever once the agent's queue was full."""
    monkeypatch.setattr(local_socket, "SEND_TIMEOUT_S", 1)
    with played_agent(local_socket.AgentLink, SECRET) as (connecting, _):
        link = connecting.result()
        with pytest.raises(AgentUnavailableError, match="read nothing for 1 s"):
            talk_on_and_on(link)
        link.close()
