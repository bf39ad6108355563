"""A root agent's process until it is elected: it stands by, with everything imported."""

import logging
import os
import random
import select

from twinckpt.agents.config import RootAgentConfig
from twinckpt.agents.control_store import ControlStore, Leadership
from twinckpt.errors import AgentUnavailableError

logger = logging.getLogger(__name__)


def stand_by(store: ControlStore, config: RootAgentConfig) -> Leadership | None:
    """Campaign until elected.

    Returns None once the watched process has ended, or if nobody is ever elected after the
    root that is there. Raises OSError if this machine cannot listen.
    """
    try:  # only torchrun starts one that stands by
        watched = os.pidfd_open(config.watched[0]) if config.watched else None
    except ProcessLookupError:
        return None
    is_reachable = True
    try:
        while True:
            try:
                leadership = store.campaign(config.host)
                is_reachable = True
                if leadership is not None or not store.elects_successors:
                    return leadership
            except AgentUnavailableError as error:
                if is_reachable:
                    logger.warning("%s; until then no root can be elected", error)
                is_reachable = False
            pause_s = store.pause_s * random.uniform(0.5, 1.5)
            if select.select([watched] if watched is not None else [], [], [], pause_s)[0]:
                return None
    finally:
        if watched is not None:
            os.close(watched)
