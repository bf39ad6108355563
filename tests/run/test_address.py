"""Where ranks that are forked again meet."""

import argparse
import os
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from helpers import played_agent
from twinckpt.agents.rendezvous import TwinRendezvousHandler
from twinckpt.net import local
from twinckpt.net.local_socket import MAX_MESSAGE_BYTES, AgentLink
from twinckpt.net.ports import free_port
from twinckpt.run import WarmParent

SECRET = "s" * 32
OF_TORCHRUN = {"RANK": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


@pytest.fixture
def launched():
    """The environment of a rank of a machine that was told its own address."""
    with mock.patch.dict(os.environ, TWINCKPT_SECRET=SECRET, **OF_TORCHRUN):
        endpoint = f"127.0.0.1:{free_port()}"
        parameters = RendezvousParameters("twinckpt", endpoint, "job", 1, 1, host="127.0.0.2")
        handler = TwinRendezvousHandler(parameters)
        handler.next_rendezvous()
        yield
        handler.shutdown()


@pytest.mark.usefixtures("launched")
def test_a_machine_that_was_not_the_first_offers_its_own_address_too():
    """It may become the first one: at the loopback address others would look for it at home."""
    with (
        played_agent(AgentLink, SECRET.encode()) as (calling, agent),
        ThreadPoolExecutor(1) as pool,
    ):
        parent = WarmParent(calling.result(), argparse.Namespace())
        joining = pool.submit(parent._become_member_of_next_generation)
        ready = local.TO_AGENT.decode(agent.recv(MAX_MESSAGE_BYTES))
        agent.send(local.FROM_AGENT.encode(local.LauncherBroken("enough", is_final=True)))
        assert not joining.result()
    assert ready.master_endpoint.startswith("127.0.0.2:")
