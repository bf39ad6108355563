"""Things that training scripts do and a checkpointer may not expect."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributed.optim import PostLocalSGDOptimizer

from helpers import agents_of_tests, open_descriptors
from twinckpt import Checkpointer
from twinckpt.errors import ConfigurationError
from twinckpt.memory import checksums
from twinckpt.memory.drained import drained_steps
from twinckpt.net.ports import free_port

# In a process of its own: an agent keeps the slots that it has made, and they may be large enough.
OUTGROWN = """
import torch
from twinckpt import Checkpointer

history = {"losses": torch.zeros(1)}
with Checkpointer({"history": history}) as checkpointer:
    checkpointer.save(1, block=True)
    history["losses"] = torch.rand(2 << 20)
    assert checkpointer.save(2).status == "skipped"
    assert checkpointer.restore() == 1
    expected = history["losses"] = torch.rand(3 << 20)
    assert checkpointer.save(2, block=True).status == "committed"
    history["losses"] = torch.zeros(1)
    assert checkpointer.restore() == 2
    assert torch.equal(history["losses"], expected)
"""

GROWING = """
import torch
from twinckpt import Checkpointer

seen = {"replay": torch.zeros(1)}
weight = torch.randn(400, 400)
with Checkpointer({"seen": seen}) as checkpointer:
    for step in range(1, 61):
        seen["replay"] = torch.zeros(1000 * step)
        checkpointer.save(step)
        for _ in range(20):
            weight = torch.nn.functional.normalize(weight @ weight)
    print(checkpointer.num_skipped)
"""


# The history of LBFGS: eight tensors more a step, until it has a hundred pairs.
GROWING_FAST = """
import torch
from twinckpt import Checkpointer

seen = {"history": []}
weight = torch.randn(400, 400)
with Checkpointer({"seen": seen}) as checkpointer:
    for step in range(1, 61):
        seen["history"] += [torch.zeros(1000) for _ in range(8)]
        checkpointer.save(step)
        for _ in range(20):
            weight = torch.nn.functional.normalize(weight @ weight)
    print(checkpointer.num_skipped)
"""


# However slow the storage: this one takes two seconds for a step.
SLOW_STORAGE = """
import sys
from pathlib import Path
import torch
from twinckpt import Checkpointer
from twinckpt.memory.drained import drained_steps

slow = {"drain_directory": sys.argv[1], "drain_mib_per_s": 1, "drain_every_commits": 1}
with Checkpointer({"weights": torch.rand(1 << 19)}, num_slots=3, **slow) as checkpointer:
    for step in range(1, 10):
        checkpointer.save(step, block=True)
    print(checkpointer.committed_step, drained_steps(Path(sys.argv[1])))
"""


# The storage takes two seconds for a step, longer than a slot is waited for otherwise.
BLOCKED_BY_STORAGE = """
import sys
import torch
from twinckpt.checkpointer import checkpointer as module

module.GRANT_TIMEOUT_S = 0.5
slow = {"drain_directory": sys.argv[1], "drain_mib_per_s": 1, "drain_every_commits": 1}
with module.Checkpointer({"weights": torch.rand(1 << 19)}, **slow) as checkpointer:
    for step in (1, 2, 3):
        checkpointer.save(step, block=True)
"""


# A handler closes while it is waited for the storage, which takes two seconds.
CLOSED_BY_A_HANDLER = """
import signal
import sys
import torch
from twinckpt import Checkpointer

slow = {"drain_directory": sys.argv[1], "drain_mib_per_s": 1, "drain_every_commits": 10}
with Checkpointer({"weights": torch.rand(1 << 19)}, **slow) as checkpointer:
    checkpointer.save(1, block=True)
    signal.signal(signal.SIGALRM, lambda *_: checkpointer.close())
    signal.setitimer(signal.ITIMER_REAL, 0.3)
"""


# What shall be a directory is a file; and the last step is not due.
NO_STORAGE = """
import sys
from pathlib import Path
import torch
from twinckpt import Checkpointer

settings = {"drain_directory": sys.argv[1], "drain_every_commits": 10}
with Checkpointer({"weights": torch.rand(10)}, **settings) as checkpointer:
    checkpointer.save(1)
    Path(sys.argv[1]).touch()
"""


# The exception is handled outside of the block, and another Checkpointer may follow.
CAUGHT = """
import sys
import torch
from twinckpt import Checkpointer

settings = {"drain_directory": sys.argv[1], "drain_every_commits": 10}
state = {"weights": torch.rand(10)}
try:
    with Checkpointer(state, **settings) as checkpointer:
        checkpointer.save(1, block=True)
        raise KeyboardInterrupt
except KeyboardInterrupt:
    pass
{then}
"""

FOLLOWED = """
with Checkpointer(state, **settings) as checkpointer:
    checkpointer.save(2, block=True)
"""


# It never asks what there is to restore.
STARTS_ANEW = """
import sys
import torch
from twinckpt import Checkpointer

settings = {"drain_directory": sys.argv[1], "drain_every_commits": 10}
with Checkpointer({"weights": torch.rand(10)}, **settings) as checkpointer:
    for step in range(1, 1 + int(sys.argv[2])):
        checkpointer.save(step, block=True)
"""


# A shard is damaged, and whoever lists the storage waits three seconds.
DAMAGED_IN_SLOW_STORAGE = """
import os
import sys
import threading
import time
from pathlib import Path
import torch
from twinckpt import Checkpointer
from twinckpt.errors import RestoreError
from twinckpt.memory.drained import shard_path, step_directory

directory = Path(sys.argv[1])
with Checkpointer(
    {"weights": torch.rand(10)}, drain_directory=str(directory), drain_every_commits=1
) as checkpointer:
    shard_path(directory, 1, 0).write_bytes(b"")
    manifest = step_directory(directory, 2) / "manifest.json"
    manifest.parent.mkdir()
    os.mkfifo(manifest)

    def answer():
        with manifest.open("wb"):
            time.sleep(3)

    slow = threading.Thread(target=answer)
    slow.start()
    try:
        checkpointer.restore()
    except RestoreError as error:
        print(error)
    slow.join()
"""


@pytest.fixture
def state():
    """A model, its optimizer and gradients."""
    model = torch.nn.Linear(1000, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model(torch.ones(1, 1000)).sum().backward()
    return {"model": model, "optimizer": optimizer}


def test_steps_must_grow_from_save_to_save(state):
    """Steps that are counted anew in each epoch would silently be skipped."""
    with Checkpointer(state) as checkpointer:
        checkpointer.save(np.int64(10), block=True)
        with pytest.raises(ConfigurationError, match=r"save\(3\) after step 10: steps must grow"):
            checkpointer.save(3)
        with pytest.raises(ConfigurationError, match=r"save\(11\.5\): a step is a whole number"):
            checkpointer.save(11.5)
        assert checkpointer.restore() == 10
        assert checkpointer.save(3, block=True).status == "committed"


def test_a_blocking_save_is_committed_where_the_state_has_outgrown_its_slots():
    """Another save skips the step while larger ones are made; the one before is not lost."""
    run = subprocess.run([sys.executable, "-c", OUTGROWN], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_with_a_third_slot_checkpoints_go_on_while_one_is_drained(tmp_path):
    """The last of them is in storage when the program ends."""
    program = [sys.executable, "-c", SLOW_STORAGE, str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.stdout == "9 ()\n", run.stderr
    assert drained_steps(tmp_path) == (1, 9)


def test_a_blocking_save_waits_for_the_slot_of_a_step_that_is_drained(tmp_path):
    """It used to raise TimeoutError, which ended the training."""
    program = [sys.executable, "-c", BLOCKED_BY_STORAGE, str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert drained_steps(tmp_path)[-1:] == (3,)


def test_a_signals_handler_may_close_what_is_being_closed(tmp_path):
    """It waits for the last step as well."""
    program = [sys.executable, "-c", CLOSED_BY_A_HANDLER, str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "missing" not in run.stderr
    assert drained_steps(tmp_path) == (1,)


def test_a_last_step_that_cannot_be_drained_is_told_of(tmp_path):
    """The program ends as well as it would have."""
    program = [sys.executable, "-c", NO_STORAGE, str(tmp_path / "drained")]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0
    assert "the last step, 1, is not in persistent storage (the newest there is None)" in run.stderr


@pytest.mark.parametrize(("then", "step"), [("", 1), (FOLLOWED, 2)], ids=["ends", "followed"])
def test_the_last_step_of_a_program_that_ends_well_after_an_exception_is_drained(
    tmp_path, then, step
):
    """The end of the `with` block could not know that it is caught."""
    program = [sys.executable, "-c", CAUGHT.replace("{then}", then), str(tmp_path)]
    run = subprocess.run(program, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert "persistent storage" not in run.stderr
    assert drained_steps(tmp_path) == (step,)


def test_a_last_step_that_is_older_than_what_storage_has_is_told_of(tmp_path):
    """It is not drained: another training's step would be restored before it."""
    runs = [
        subprocess.run(
            [sys.executable, "-c", STARTS_ANEW, str(tmp_path), num_steps],
            capture_output=True,
            text=True,
        )
        for num_steps in ("3", "2")
    ]
    assert [run.returncode for run in runs] == [0, 0]
    assert "persistent storage" not in runs[0].stderr
    assert "the last step, 2, is not in persistent storage (the newest there is 3)" in (
        runs[1].stderr
    )


def test_a_machine_is_not_lost_while_slow_storage_sets_a_damaged_step_aside(tmp_path):
    """Its heartbeats go on."""
    directory, events = tmp_path / "drained", tmp_path / "events"
    subprocess.run([sys.executable, "-c", STARTS_ANEW, str(directory), "1"], check=True)
    run = subprocess.run(
        [sys.executable, "-c", DAMAGED_IN_SLOW_STORAGE, str(directory)],
        env={**os.environ, "TWINCKPT_EVENT_LOG": str(events)},
        capture_output=True,
        text=True,
    )
    assert "what starts next resumes an older step" in run.stdout, run.stderr
    assert "machine_lost" not in (events / "root.jsonl").read_text()


@pytest.mark.parametrize("script", [GROWING, GROWING_FAST])
def test_a_state_that_grows_with_every_step_is_checkpointed(script):
    """Slots made to measure would be too small by the time that they are there."""
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert int(run.stdout) < 50, run.stderr  # else all but a few of the 60


def test_a_state_that_would_have_too_many_chunks_has_larger_ones(state, monkeypatch):
    """As one of more than 16 GiB a rank; this one has 8 MB."""
    monkeypatch.setattr(checksums, "MAX_CHUNKS", 3)
    expected = state["model"].weight.detach().clone()
    with Checkpointer(state) as checkpointer:
        assert checkpointer.save(1, block=True).status == "committed"
        state["model"].weight.data.zero_()
        assert checkpointer.restore() == 1
    assert torch.equal(state["model"].weight, expected)


def test_a_second_one_beside_the_first_is_refused(state):
    """Otherwise the first would silently stop saving."""
    with (
        Checkpointer(state),
        pytest.raises(ConfigurationError, match="has a Checkpointer already"),
    ):
        Checkpointer({"data": {"position": 3}})
    Checkpointer(state).close()


def test_other_settings_than_the_agents_of_this_process_run_with_are_refused(state, tmp_path):
    """They used to be ignored: nothing was drained, say."""
    Checkpointer(state).close()
    with pytest.raises(ConfigurationError, match=r"drain_directory=.* agents of this job run"):
        Checkpointer(state, drain_directory=str(tmp_path), drain_every_commits=1)
    Checkpointer(state).close()


def test_many_of_them_in_one_process_leave_no_descriptor_behind(state, until):
    """A process that makes them one after the other had no descriptor left, nor had its agent."""

    def use_one(step):
        with Checkpointer(state) as checkpointer:
            checkpointer.restore()
            checkpointer.save(step, block=True)

    use_one(1)
    (agent,) = agents_of_tests("twinckpt.agents.worker")
    before, of_the_agent = open_descriptors(), agent.num_fds()
    for step in range(2, 12):
        use_one(step)
    gc.collect()
    assert not [new for new in open_descriptors() - before if "twinckpt-slot" in new[2]]
    until(lambda: agent.num_fds() <= of_the_agent, "an agent that watches no process any longer")


def test_one_that_is_closed_says_so(state):
    """As after the with block of a loop that ends with a last save."""
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        handle = checkpointer.save(2)
    with pytest.raises(ConfigurationError, match="this Checkpointer is closed"):
        handle.wait()
    with pytest.raises(ConfigurationError, match="this Checkpointer is closed"):
        checkpointer.save(2)
    with pytest.raises(ConfigurationError, match="this Checkpointer is closed"):
        checkpointer.restore()
    checkpointer.close()


def test_a_parameter_may_be_one_element_of_a_column():
    """Its stride is that of the column: the first fence used to fail with torch's error."""
    bias = torch.nn.Parameter(torch.rand(1, 5)[:, 2])
    expected = bias.detach().clone()
    optimizer = torch.optim.SGD([bias], lr=0.1)
    state = {"model": torch.nn.ParameterList([bias]), "optimizer": optimizer}
    with Checkpointer(state, strict=True) as checkpointer:
        checkpointer.save(1, block=True)
        bias.sum().backward()
        optimizer.step()
        assert checkpointer.restore() == 1
    assert torch.equal(bias, expected)


def test_an_optimizer_that_comes_later_waits_for_the_copy_too(state, caplog):
    """As after unfreezing layers."""
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        later = state["optimizer"] = torch.optim.SGD(state["model"].parameters(), lr=0.1)
        for step in range(2, 6):
            checkpointer.save(step, block=True)
            later.step()
        assert checkpointer.num_failed == 0
    assert not caplog.records
    assert fences_during(checkpointer, later.step) == 0  # the hook is gone


@pytest.mark.parametrize("is_known", [True, False])
def test_an_optimizer_that_is_not_in_the_state_waits_for_the_copy_too(state, is_known):
    """A fused one leaves no trace in the version counters: two steps were mixed, in silence."""
    weight = torch.nn.Parameter(torch.zeros(8 << 20))
    other = torch.optim.SGD([weight], lr=1.0, fused=True)
    weight.grad = torch.ones_like(weight)
    state["head"] = torch.nn.ParameterList([weight])
    if is_known:
        state["others"] = Container(other)
    state["optimizer"].step()
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        state["optimizer"].step()
        for step in range(2, 6):
            handle = checkpointer.save(step)
            other.step()
            assert handle.wait(timeout_s=30) == "committed"
            checkpointer.restore()
            assert not weight.count_nonzero()
    before, steps = checkpointer.stall_s, other.step()
    assert (checkpointer.stall_s, steps) == (before, None)  # the hook is gone


def test_a_module_made_for_inference_may_change_right_after_save(state):
    """As averaged weights: no version counter tells of it, and two steps were mixed."""
    with torch.inference_mode():
        teacher = state["teacher"] = torch.nn.Linear(4 << 20, 2, bias=False)
        teacher.weight.zero_()
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        state["optimizer"].step()
        handle = checkpointer.save(2)
        with torch.inference_mode():
            teacher.weight.add_(1)
        assert handle.wait(timeout_s=30) == "committed"
        assert checkpointer.restore() == 2
    assert not teacher.weight.count_nonzero()


class Container:
    """Something of its own that holds an optimizer."""

    def __init__(self, optimizer):
        self.state_dict = optimizer.state_dict
        self.load_state_dict = optimizer.load_state_dict


class Wrapper(torch.optim.Optimizer):
    """An optimizer that passes on, and never calls its base's `__init__`, as Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def state(self):
        return self.optimizer.state

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def state_dict(self):
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.optimizer.load_state_dict(state_dict)

    def step(self, closure=None):
        self.optimizer.step(closure)


def fences_during(checkpointer, action):
    """Return how often the fence ran meanwhile."""
    with mock.patch.object(checkpointer, "fence", wraps=checkpointer.fence) as fence:
        action()
    return fence.call_count


def test_a_wrapped_optimizer_is_one(state):
    """Its inner one has the fence; state that is yet to come is restored too."""
    inner = state["optimizer"]
    state["optimizer"] = Wrapper(inner)
    with Checkpointer(state) as checkpointer:
        assert fences_during(checkpointer, state["optimizer"].step) == 1
        checkpointer.save(1, block=True)
        expected = inner.state_dict()["state"][0]["momentum_buffer"].clone()
        inner.state.clear()
        checkpointer.restore()
    assert torch.equal(inner.state_dict()["state"][0]["momentum_buffer"], expected)


class Averager:
    """Averages no parameters, as `PeriodicModelAverager` on a single rank."""

    step = 0

    def average_parameters(self, params):
        self.step += 1


def test_a_wrapper_that_calls_its_optimizer_otherwise_is_one(state, caplog):
    """As `PostLocalSGDOptimizer`, which has no hooks of its own."""
    inner = state["optimizer"]
    state["optimizer"] = PostLocalSGDOptimizer(inner, Averager())
    with Checkpointer(state) as checkpointer:
        assert fences_during(checkpointer, state["optimizer"].step) == 1
        for step in range(1, 4):
            state["optimizer"].step()
            checkpointer.save(step, block=True)
        assert checkpointer.num_failed == 0
        assert checkpointer.restore() == 3
    assert not caplog.records


WITHOUT_CLOSE = Path(__file__).parents[1] / "cluster" / "scripts" / "without_close.py"


@pytest.mark.cluster
def test_a_rank_that_ends_without_close_has_not_failed(tmp_path):
    """The other one goes on saving; torchrun may restart nothing here."""
    os.mkfifo(tmp_path / "end-of-rank-0")
    run = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--rdzv-backend=twinckpt"),
            *(f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--nproc-per-node=2", "--max-restarts=0"),
            *(str(WITHOUT_CLOSE), str(tmp_path)),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr


def test_nested_lists_and_dictionaries_are_filled_in_place():
    """The loop may hold them by variables of its own."""
    losses, best = [1.0, 2.0], {"step": 1}
    progress = {"losses": losses, "best": best, "again": losses}
    with Checkpointer({"progress": progress}) as checkpointer:
        checkpointer.save(1, block=True)
        losses.append(3.0)
        best["step"] = 2
        checkpointer.restore()
        assert progress["losses"] is losses
        assert progress["best"] is best
        assert (losses, best) == ([1.0, 2.0], {"step": 1})


class Interrupted(BaseException):
    """As a KeyboardInterrupt, which a notebook catches."""


class Interrupting:
    """A part whose state is asked for at a bad moment, once."""

    def __init__(self):
        self.is_bad_moment = False

    def state_dict(self):
        if self.is_bad_moment:
            self.is_bad_moment = False
            raise Interrupted
        return {}

    def load_state_dict(self, state):
        pass


def test_a_save_that_is_interrupted_does_not_lose_its_slot():
    part = Interrupting()
    with Checkpointer({"part": part, "weight": torch.zeros(4)}) as checkpointer:
        checkpointer.save(1, block=True)
        part.is_bad_moment = True
        while part.is_bad_moment:
            with contextlib.suppress(Interrupted):
                checkpointer.save(checkpointer.num_saves + 1)
        assert checkpointer.save(1000, block=True).status == "committed"


class Signalling:
    """A part that is interrupted by a signal each time that it is saved."""

    def state_dict(self) -> dict:
        signal.raise_signal(signal.SIGUSR1)
        return {}

    def load_state_dict(self, state: dict) -> None:
        pass


def test_a_handler_that_saves_within_a_save_is_kept_out_of_it(state):
    """It used to wait for a lock that its own thread held, or its copy was never fenced."""
    found: list = []
    with Checkpointer(state) as checkpointer:
        state["signalling"] = Signalling()

        def handler(*_) -> None:
            found.append(checkpointer.save(1).status)
            with pytest.raises(ConfigurationError, match="set a flag"):
                checkpointer.save(1, block=True)

        former = signal.signal(signal.SIGUSR1, handler)
        try:
            assert checkpointer.save(1, block=True).status == "committed"
        finally:
            signal.signal(signal.SIGUSR1, former)
    assert set(found) == {"skipped"}


def test_another_thread_may_wait_for_commits(state):
    """To log them, say."""
    with Checkpointer(state) as checkpointer, ThreadPoolExecutor(1) as pool:
        waiting = []
        for step in range(1, 200):
            handle = checkpointer.save(step)
            if handle.status != "skipped":
                waiting.append(pool.submit(handle.wait, timeout_s=60))
        checkpointer.save(200, block=True)
        assert {each.result(timeout=60) for each in waiting} == {"committed"}


FORKING = """
import os, sys, torch
from twinckpt import Checkpointer

torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
parameter = torch.nn.Parameter(torch.zeros(4 << 20))
optimizer = torch.optim.SGD([parameter], lr=0.1)
state = {"model": torch.nn.ParameterList([parameter]), "optimizer": optimizer}
checkpointer = Checkpointer(state)
for step in range(1, 7):
    parameter.grad = torch.ones_like(parameter)
    checkpointer.save(step)
    if not (child := os.fork()):
        optimizer.step()
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    optimizer.step()
assert checkpointer.save(100, block=True).status == "committed"
assert checkpointer.num_failed == 0
"""


def test_a_forked_child_leaves_the_parents_checkpoints_alone():
    """It has neither the connection nor the thread that copies."""
    run = subprocess.run(
        [sys.executable, "-c", FORKING], capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr


def test_a_forked_child_that_saves_is_refused(state):
    """It used to wait for ever for a thread that only its parent has."""
    with Checkpointer(state) as checkpointer:
        checkpointer.save(1, block=True)
        if not (child := os.fork()):
            try:
                checkpointer.save(2)
            except ConfigurationError as error:
                os._exit(0 if "was forked" in str(error) else 1)
            finally:
                os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert checkpointer.save(3, block=True).status == "committed"
