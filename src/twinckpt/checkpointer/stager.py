"""The background thread that copies; one job after the other."""

import threading
from collections import deque
from collections.abc import Callable

from twinckpt.errors import TwinckptError


class Stager:
    """Runs copy jobs beside the training loop, in the order in which they were started."""

    def __init__(self) -> None:
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job is waiting or running."""
        return bool(self._jobs)

    def start(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, in the background, once the previous ones have ended.

        Raises TwinckptError where the process may have no further thread.
        """
        with self._changed:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name="staging", daemon=True)
                try:
                    thread.start()
                except RuntimeError as error:
                    raise TwinckptError(f"no thread to copy with: {error}") from error
                self._thread = thread
            self._jobs.append(job)
            self._changed.notify_all()

    def wait(self) -> None:
        """Return once no job is left."""
        if self._jobs:
            with self._changed:
                self._changed.wait_for(lambda: not self._jobs)

    def close(self) -> None:
        """Let all jobs finish, then end the thread."""
        self.wait()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._jobs or self._is_closed)
                if not self._jobs:
                    return
                job = self._jobs[0]
            try:
                job()
            finally:
                del job  # with what it copied to
                with self._changed:
                    self._jobs.popleft()
                    self._changed.notify_all()
