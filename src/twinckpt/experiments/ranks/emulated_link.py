"""One machine's outgoing network link, emulated: real transfers, slowed to a configured rate."""

import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from twinckpt.core.interleaving import Link


@dataclass(frozen=True, slots=True)
class Busy:
    """An interval in which something was busy, on the monotonic clock, in seconds.

    `is_late`: the real transfer took longer than it would on the emulated link.
    """

    what: str
    start_s: float
    end_s: float
    is_late: bool = False


class EmulatedLink:
    """Carries out transfers one after the other, first come, first served.

    The training's traffic and chunks of a checkpoint share the link. A transfer really happens,
    and holds the link for at least f(s) = α + s/B: it sleeps for what is left of that time.
    """

    def __init__(self, link: Link) -> None:
        self._link = link
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="link")
        self._busy: list[Busy] = []

    def submit(
        self,
        what: str,
        size_bytes: int,
        transfer: Callable[[], None],
        then: Callable[[], None] = lambda: None,
    ) -> "Future[None]":
        """Queue a transfer; `then` is called in the link's thread when it has ended."""

        def carry() -> None:
            started_s = time.monotonic()
            transfer()
            took_s = time.monotonic() - started_s
            emulated_s = self._link.transfer_s(size_bytes)
            if took_s < emulated_s:
                time.sleep(emulated_s - took_s)
            self._busy.append(Busy(what, started_s, time.monotonic(), took_s > emulated_s))
            then()

        return self._thread.submit(carry)

    def take_busy(self) -> list[Busy]:
        """Return the busy intervals since the last call; call it when nothing is queued."""
        busy, self._busy = self._busy, []
        return busy
