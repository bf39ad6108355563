"""A rank's side of the conversation with its agent, which this process plays."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers import open_descriptors, played_agent
from twinckpt.checkpointer.agent_client import AgentClient, ArrivalFailed, Copy
from twinckpt.memory.seal import Seal
from twinckpt.memory.slot import Slot
from twinckpt.net import local
from twinckpt.net.local_socket import MAX_MESSAGE_BYTES

SECRET = b"a secret of the job that is long"
TIMEOUT_S = 30.0


@pytest.fixture
def conversation():
    """A rank's client, and the agent's end of its connection."""
    with played_agent(AgentClient, SECRET, 0, 1, 1) as (making, agent):
        assert agent.recv(MAX_MESSAGE_BYTES)
        say(agent, local.Welcome(1, 0))
        yield making.result(), agent


def say(agent, message, slot=None):
    payload = local.FROM_AGENT.encode(message)
    socket.send_fds(agent, [payload], [slot.fd] if slot else [])


def answer_to_request(conversation, message, slot=None):
    """Have the rank ask what to restore from; return how it takes the agent's answer."""
    client, agent = conversation
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.request_restore, TIMEOUT_S)
        assert local.TO_AGENT.decode(agent.recv(MAX_MESSAGE_BYTES)) == local.RestoreRequest()
        say(agent, message, slot)
        return asking.result()


@pytest.fixture
def slot():
    return Slot.allocate(100)


@pytest.fixture
def seal(slot):
    return Seal.of(slot.buffer[:100], rank=0, ticket=1, step=1, home=0, world_size=1)


@pytest.mark.parametrize("is_heard", [True, False])
def test_what_came_for_a_restore_that_failed_is_no_answer_to_the_next(
    conversation, slot, seal, is_heard
):
    """Whose slot holds another version by then; a loop may catch a RestoreError and go on."""
    client, agent = conversation
    arriving = local.RestoreArriving(seal, slot.capacity_bytes)
    assert isinstance(answer_to_request(conversation, arriving, slot), Copy)
    before = open_descriptors()
    say(agent, local.RestoreFrom(seal, slot.capacity_bytes, "peer"), slot)
    if is_heard:
        client.wait_for_arrival(seal, 100, TIMEOUT_S)
    assert answer_to_request(conversation, local.RestoreNothing()) is None
    assert not open_descriptors() - before


def test_a_copy_that_is_given_up_while_it_arrives_is_an_error(conversation, slot, seal):
    """The answer that came instead is the next one."""
    client, agent = conversation
    answer_to_request(conversation, local.RestoreArriving(seal, slot.capacity_bytes), slot)
    say(agent, local.RestoreDrained("/shared", 7))
    with pytest.raises(ArrivalFailed):
        client.wait_for_arrival(seal, 100, TIMEOUT_S)
    assert client.next_answer(TIMEOUT_S) == local.RestoreDrained("/shared", 7)
