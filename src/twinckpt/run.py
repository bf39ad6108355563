"""`torchrun … -m twinckpt.run [--preload MODULE,…] script.py ARGS`: ranks that restart by fork.

The process that torchrun starts imports torch once and forks the training process from that
warm image. When a training process dies, or its generation ends for a failure elsewhere, it
is forked again: no interpreter start, no import. The parent never runs user code and never
touches CUDA; torchrun sees a healthy process and keeps deciding when the job begins and ends.
"""

import argparse
import builtins
import contextlib
import ctypes
import gc
import importlib
import logging
import os
import resource
import runpy
import select
import signal
import sys
import threading
import time
import tokenize
import types
from typing import Any, NoReturn

from twinckpt.errors import TwinckptError
from twinckpt.meeting import MeetingPoint
from twinckpt.net.local import (
    ChildLost,
    LauncherBroken,
    LauncherDismissed,
    LauncherFormed,
    WarmHello,
    WarmReady,
)
from twinckpt.net.local_socket import AgentLink
from twinckpt.net.secret import load_secret

logger = logging.getLogger("twinckpt.run")

# Modules that building and sharding a model import lazily; a forked child should find them loaded.
_PRELOADED = (
    "torch",
    "torch._dynamo",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.nn.parallel",
    "torch.optim",
    "twinckpt.checkpointer",
)
_FIRST_BACK_OFF_S, _LONGEST_BACK_OFF_S = 0.5, 30.0
_PR_SET_PDEATHSIG = 1
_CANNOT_OPEN = 2  # Python's own exit status
# Signals that are meant for the training process, with its default handlers.
_FORWARDED: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
    signal.SIGHUP: signal.SIG_DFL,
    signal.SIGUSR1: signal.SIG_DFL,
    signal.SIGUSR2: signal.SIG_DFL,
}
_ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class WarmParent:
    """Forks one rank's training process, again after each failure, until it succeeds."""

    def __init__(self, link: AgentLink, arguments: argparse.Namespace) -> None:
        self._link = link
        self._arguments = arguments
        self._local_rank = int(os.environ["LOCAL_RANK"])
        self._local_world_size = int(os.environ["LOCAL_WORLD_SIZE"])
        self._max_restarts = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
        self._num_own_failures = 0
        self._child = 0
        self._ending_signal = 0
        self._meeting: MeetingPoint | None = None

    def run(self) -> int:
        """Fork until the job ends; return torchrun's exit code (below 0: end by that signal)."""
        for number in _FORWARDED:
            signal.signal(number, self._on_signal)
        self._link.send(WarmHello(self._local_rank, self._local_world_size))
        is_spare = os.environ.pop("TWINCKPT_STANDBY", "")
        if is_spare and not self._become_member_of_next_generation():
            return 1
        while True:
            self._child = self._fork()
            exit_code = self._wait_for_child_or_break()
            if exit_code == 0:
                return 0
            if exit_code is not None:
                self._num_own_failures += 1
                if self._ending_signal:
                    return exit_code
                is_final = self._num_own_failures > self._max_restarts
                self._link.send(ChildLost(int(os.environ["RANK"]), exit_code, is_final))
                if not self._wait_for_break():
                    return exit_code
                if exit_code > 0:
                    time.sleep(self._back_off_s())
            elif self._given_up:
                return 1
            if not self._become_member_of_next_generation():
                return 1

    # The child.

    def _fork(self) -> int:
        parent = os.getpid()
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        with contextlib.suppress(OSError):
            os.setpgid(child, child)  # both processes call it: either may come first
        if child:
            if self._meeting is not None:
                self._meeting.close()
                self._meeting = None
            return child
        for number, handler in _FORWARDED.items():
            signal.signal(number, handler)
        self._link.close()
        _die_with_parent(parent)
        gc.enable()
        store = self._meeting.serve() if self._meeting else None
        _run_script(self._arguments, store)

    def _wait_for_child_or_break(self) -> int | None:
        """Return the child's exit code; None if it was stopped because the generation is over."""
        self._given_up = False
        child_fd = os.pidfd_open(self._child)
        try:
            poll = select.poll()
            poll.register(child_fd, select.POLLIN)
            poll.register(self._link.fileno(), select.POLLIN)
            while True:
                ready = {fd for fd, _ in poll.poll()}
                if child_fd in ready:
                    return self._reap_child()
                received = self._link.receive(0.0)
                if received is not None and isinstance(received[0], LauncherBroken):
                    self._given_up = received[0].is_final
                    if not self._ending_signal:  # else it keeps torchrun's grace period
                        os.killpg(self._child, signal.SIGKILL)
                        self._reap_child()
                        return None
        finally:
            os.close(child_fd)

    def _reap_child(self) -> int:
        child, self._child = self._child, 0
        status = os.waitpid(child, 0)[1]
        if status:
            with contextlib.suppress(OSError):
                os.killpg(child, signal.SIGKILL)  # data loaders that the child left behind
        return os.waitstatus_to_exitcode(status)

    def _on_signal(self, number: int, frame: object) -> None:
        """Pass a signal on to the child, or end by it; after an ending one no child is forked."""
        if number in _ENDING:
            self._ending_signal = number
        if self._child:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._child, number)
        else:
            _end_by(number)

    # The generation.

    def _wait_for_break(self) -> bool:
        """Wait until the root has ended the generation; False if it has given the job up."""
        while True:
            received = self._link.receive(None)
            if received is not None and isinstance(received[0], LauncherBroken):
                return not received[0].is_final

    def _become_member_of_next_generation(self) -> bool:
        """Join, and wait for the generation; False if this machine may not take part.

        Ends this process with status 0 if the job ends while this machine is a spare.
        """
        self._meeting = MeetingPoint(os.environ["TWINCKPT_LOCAL_ADDRESS"])
        self._link.send(WarmReady(self._meeting.endpoint))
        while True:
            message, _ = self._link.receive(None) or (None, None)
            if isinstance(message, LauncherBroken) and message.is_final:
                return False
            if isinstance(message, LauncherDismissed):
                sys.exit(0)
            if isinstance(message, LauncherFormed):
                self._set_environment(message)
                return True

    def _set_environment(self, formed: LauncherFormed) -> None:
        """Set the variables that torchrun sets for a rank, for its place in this generation."""
        rank = formed.index * self._local_world_size + self._local_rank
        world_size = formed.num_machines * self._local_world_size
        host, port = formed.master_endpoint.rsplit(":", 1)
        restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) + 1
        os.environ.update(
            RANK=str(rank),
            ROLE_RANK=str(rank),
            WORLD_SIZE=str(world_size),
            ROLE_WORLD_SIZE=str(world_size),
            GROUP_RANK=str(formed.index),
            GROUP_WORLD_SIZE=str(formed.num_machines),
            MASTER_ADDR=host,
            MASTER_PORT=port,
            TORCHELASTIC_RESTART_COUNT=str(restarts),
            TWINCKPT_GENERATION=str(formed.generation),
        )

    def _back_off_s(self) -> float:
        return min(_FIRST_BACK_OFF_S * 2 ** (self._num_own_failures - 1), _LONGEST_BACK_OFF_S)


def main() -> int:
    """Preload, then fork and watch the script; run it in this process if forking cannot work."""
    arguments = _parse(sys.argv[1:])
    if "TWINCKPT_AGENT" not in os.environ:
        _run_without_fork(arguments, "twinckpt.run needs torchrun --rdzv-backend=twinckpt")
    # Modules that ask for a GPU as they are imported must not open it: no fork could use it then.
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")
    for name in _PRELOADED:
        importlib.import_module(name)
    try:
        for name in filter(None, arguments.preload.split(",")):
            importlib.import_module(name)
    except ImportError as error:
        logger.error("--preload %s: %s", arguments.preload, error)
        return _CANNOT_OPEN
    if threading.active_count() > 1:
        _run_without_fork(arguments, "a preloaded module started threads, which no fork has")
    if sys.modules["torch"].cuda.is_initialized():
        _run_without_fork(arguments, "a preloaded module uses CUDA, which no fork can go on with")
    # Imported objects are never garbage: a collection in a child would copy all of their pages.
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        link = AgentLink(os.environ["TWINCKPT_AGENT"], load_secret())
        exit_code = WarmParent(link, arguments).run()
    except TwinckptError as error:
        logger.error("%s", error)
        return 1
    if exit_code < 0:
        _end_by(-exit_code)
    return exit_code


def _run_without_fork(arguments: argparse.Namespace, reason: str) -> NoReturn:
    """Run the program in this process and log why; a spare has nothing to run yet: it exits."""
    if os.environ.get("TWINCKPT_STANDBY"):
        logger.error("%s: this spare stands by cold, after one restart by torchrun", reason)
        sys.exit(1)
    logger.warning("%s: a failed rank restarts from the beginning", reason)
    _run_script(arguments)


def _run_script(arguments: argparse.Namespace, held: object = None) -> NoReturn:
    """Run the user's program as `__main__`, and end this process as the interpreter would.

    `held` lives as long as the program.
    """
    sys.argv = [arguments.program, *arguments.arguments]
    try:
        main = _fresh_main()
        if arguments.module:
            # As `python -m` does: run_module's `__main__` would be gone before exit handlers run.
            runpy._run_module_as_main(arguments.program)  # type: ignore[attr-defined]
        else:
            path = os.path.abspath(arguments.program)
            sys.path[0] = os.path.dirname(path)
            _run_file(path, main)
    except SystemExit:
        raise
    except BaseException as error:  # Ctrl-C too: nobody wants to read the launcher's frames
        error = error.with_traceback(_traceback_of_user(error))
        sys.excepthook(type(error), error, error.__traceback__)
        sys.exit(1)
    sys.exit(0)


def _fresh_main() -> types.ModuleType:
    """Return a new, empty `__main__` that spawned processes and pickles can find.

    Objects that a spawned process sends back name `__mp_main__`, which is the same module here.
    """
    main = types.ModuleType("__main__")
    sys.modules["__main__"] = sys.modules["__mp_main__"] = main
    return main


def _run_file(path: str, main: types.ModuleType) -> None:
    """Run a script as the interpreter does, by its absolute path, as it may change directory."""
    try:
        with tokenize.open(path) as file:
            source = file.read()
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        print(f"{sys.executable}: can't open file {path!r}: {reason}", file=sys.stderr)
        sys.exit(_CANNOT_OPEN)
    code = compile(source, path, "exec")
    main.__dict__.update(__file__=path, __builtins__=builtins, __cached__=None)
    exec(code, main.__dict__)


def _traceback_of_user(error: BaseException) -> types.TracebackType | None:
    """Return the error's traceback without the frames that lead to the user's program."""
    traceback = error.__traceback__
    ours = (__file__, runpy.__file__, f"<frozen {runpy.__name__}>")
    while traceback is not None and traceback.tb_frame.f_code.co_filename in ours:
        traceback = traceback.tb_next
    return traceback


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent dies, however that happens."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def _end_by(number: int) -> NoReturn:
    """End this process by a signal, as its child has ended, so that torchrun says so."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # no core dump beside the child's
    if number != signal.SIGKILL:
        signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="twinckpt.run", description=__doc__)
    parser.add_argument("--preload", default="", help="further modules to import once, by commas")
    parser.add_argument("-m", "--module", action="store_true", help="the program is a module")
    parser.add_argument("program")
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    return parser.parse_args(argv)


if __name__ == "__main__":
    # Not basicConfig: after it, the user program's own basicConfig would do nothing.
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.propagate = False
    sys.exit(main())
