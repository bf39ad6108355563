"""The root agent, run in this process."""

import asyncio

import pytest

from twinckpt.agents.config import RootAgentConfig
from twinckpt.agents.embedded_store import EmbeddedStore
from twinckpt.agents.root import RootAgent
from twinckpt.core.root import Root


def test_a_root_with_a_defect_ends_so_that_another_takes_its_place(monkeypatch):
    """It used to go on without noticing machines that fell silent."""
    monkeypatch.setattr(Root, "tick", lambda self, now_s: 1 / 0)
    leadership = EmbeddedStore("127.0.0.1", 0).campaign("")
    agent = RootAgent(RootAgentConfig("127.0.0.1", 0), b"s" * 32, leadership)
    with leadership.listener, pytest.raises(ZeroDivisionError):
        asyncio.run(asyncio.wait_for(agent.run(), timeout=30))
