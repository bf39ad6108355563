"""Following the elected root: whoever the control store names, as soon as it does."""

import logging
import time
from collections.abc import Callable

from twinckpt.agents.control_store import ControlStore, RootEntry
from twinckpt.errors import TwinckptError

logger = logging.getLogger(__name__)

WATCH_S = 2.0  # a watch that says nothing for so long is made anew: its member may be frozen
_RETRY_S = 0.5


def follow_root(store: ControlStore, on_root: Callable[[RootEntry], None]) -> None:
    """Call `on_root` with each new root; blocks for ever, for a thread of its own.

    While the store does not answer, or refuses, the root that was named last is followed.
    """
    followed: RootEntry | None = None
    is_reachable = True
    while True:
        try:
            entry = store.root()
            is_reachable = True
            if entry is not None and entry != followed:
                followed = entry
                on_root(entry)
            store.wait_for_change(WATCH_S)
        except TwinckptError as error:
            if is_reachable:
                logger.warning("%s; until then the present root is followed", error)
            is_reachable = False
            time.sleep(_RETRY_S)
