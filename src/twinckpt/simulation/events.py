"""Virtual time: a queue of future events, and a story of the past ones."""

import heapq
import random
from collections import deque
from collections.abc import Callable
from typing import Any

STORY_LINES = 80


class Timeline:
    """Runs events in the order of their times; every delay comes from one seeded generator."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now_s = 0.0
        self.num_events = 0
        self._num_scheduled = 0
        self._queue: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._story: deque[tuple[float, str, tuple[Any, ...]]] = deque(maxlen=STORY_LINES)

    def after(self, delay_s: float, action: Callable[..., None], *arguments: Any) -> None:
        """Call `action(*arguments)` once this much virtual time has passed."""
        self._num_scheduled += 1
        event = (self.now_s + delay_s, self._num_scheduled, action, arguments)
        heapq.heappush(self._queue, event)

    def draw_s(self, mean_s: float) -> float:
        """Return a random duration, exponentially distributed."""
        return self.random.expovariate(1 / mean_s)

    def run_until(
        self, end_s: float, after_event: Callable[[], None], is_done: Callable[[], bool]
    ) -> None:
        """Process events up to a time, or until `is_done`; call `after_event` after each."""
        queue = self._queue
        while queue and queue[0][0] <= end_s:
            self.now_s, _, action, arguments = heapq.heappop(queue)
            action(*arguments)
            self.num_events += 1
            after_event()
            if is_done():
                return
        self.now_s = end_s

    def note(self, text: str, *arguments: Any) -> None:
        """Add a line to the story; it is formatted only if somebody reads it."""
        self._story.append((self.now_s, text, arguments))

    def story(self) -> str:
        """Return the last lines that were noted, each with its time in seconds."""
        return "\n".join(
            f"{time_s:9.3f} {text % arguments if arguments else text}"
            for time_s, text, arguments in self._story
        )
