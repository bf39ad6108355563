"""The background thread that copies; one job at a time."""

import threading
from collections.abc import Callable


class Stager:
    """Runs copy jobs beside the training loop; `wait` is the fence."""

    def __init__(self) -> None:
        self._job: Callable[[], None] | None = None
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread: threading.Thread | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job is waiting or running."""
        return self._job is not None

    def start(self, job: Callable[[], None]) -> None:
        """Run `job`, which must not raise, in the background; the previous one has ended."""
        with self._changed:
            assert self._job is None, "wait() comes before start()"
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="staging", daemon=True)
                self._thread.start()
            self._job = job
            self._changed.notify_all()

    def wait(self) -> None:
        """Return once no job is running."""
        if self._job is not None:
            with self._changed:
                self._changed.wait_for(lambda: self._job is None)

    def close(self) -> None:
        """Let the running job finish, then end the thread."""
        self.wait()
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._job is not None or self._is_closed)
                job = self._job
            if job is None:
                return
            try:
                job()
            finally:
                del job  # with what it copied to
                with self._changed:
                    self._job = None
                    self._changed.notify_all()
