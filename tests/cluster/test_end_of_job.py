"""How a job ends: ranks and machines do not all come to their end at the same time."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import wait_until
from twinckpt.agents.event_log import EventReader
from twinckpt.memory.drained import drained_steps
from twinckpt.net.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
TIMEOUT_S = 120

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
import torch, torch.distributed as dist
from twinckpt import Checkpointer

folder, who = Path(sys.argv[1]), os.environ.get("WHO") or os.environ["RANK"]
with (folder / f"begun-{who}").open("a") as begun:
    begun.write("x")
weight = torch.zeros(8)

def wait_for(name):
    while not (folder / name).exists():
        time.sleep(0.05)

dist.init_process_group("gloo")
{then}
"""


def script(folder: Path, then: str) -> str:
    """Write a script that checkpoints once, and `then` does something."""
    path = folder / "train.py"
    path.write_text(SCRIPT.replace("{then}", then))
    return str(path)


def launch(folder: Path, port: int, *options: str, who: str = "") -> subprocess.Popen[str]:
    """Start one machine's torchrun of the script."""
    rendezvous = ("--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{port}")
    command = [sys.executable, "-m", "torch.distributed.run", *rendezvous, "--max-restarts=5"]
    return subprocess.Popen(
        [*command, *options, str(folder / "train.py"), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "WHO": who},
    )


def launch_two(folder: Path, *options: str, conf: str = "") -> list[subprocess.Popen[str]]:
    """Start two machines; the root agent is on the first one."""
    port = free_port()
    events = f"--rdzv-conf=event_log={folder / 'events'},{conf}".rstrip(",")
    machines = ("--nnodes=2", "--nproc-per-node=1", events, *options)
    first = launch(folder, port, *machines, who="first")
    wait_until(lambda: listens(port), "the root agent")
    return [first, launch(folder, port, *machines, who="second")]


def listens(port: int) -> bool:
    """Return whether somebody listens there."""
    with socket.socket() as probe:
        return not probe.connect_ex(("127.0.0.1", port))


def wait_until_one_has_left(folder: Path) -> None:
    """Wait until the root has heard that a machine's part is over."""
    log = EventReader(folder / "events" / "root.jsonl")
    wait_until(lambda: any(e["event"] == "machine_left" for e in log.events), "a machine's end")


def assert_ends_well(folder: Path, then: str, *options: str) -> None:
    """Run the script on one machine."""
    script(folder, then)
    launcher = launch(folder, free_port(), *options)
    output = output_of(launcher)
    assert launcher.returncode == 0, output


def output_of(launcher: subprocess.Popen[str]) -> str:
    """Wait for its end."""
    try:
        return launcher.communicate(timeout=TIMEOUT_S)[0]
    finally:
        launcher.kill()


def begun(folder: Path, who: str) -> int:
    """Return how often a rank has begun."""
    return len((folder / f"begun-{who}").read_text())


LEAVE_ONE_BY_ONE = """
with Checkpointer({"weight": weight}) as checkpointer:
    checkpointer.save((checkpointer.restore() or 0) + 1, block=True)
    dist.barrier()
    if dist.get_rank() == 1:
        wait_for("end-1")
    elif dist.get_rank() == 0:
        (folder / "end-1").touch()
    sys.exit(0)
"""

CATCH_OUTSIDE = """
try:
    with Checkpointer({"weight": weight}) as checkpointer:
        checkpointer.save((checkpointer.restore() or 0) + 1, block=True)
        first = torch.tensor([os.getpid()])
        dist.broadcast(first, 0)
        raise RuntimeError("early stop")
except RuntimeError:
    pass
while dist.get_rank() > 0 and Path(f"/proc/{first.item()}").exists():
    time.sleep(0.05)
"""


@pytest.mark.parametrize("then", [LEAVE_ONE_BY_ONE, CATCH_OUTSIDE], ids=["sys_exit", "caught"])
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_program_that_ends_well_is_not_started_again(tmp_path, then, warm):
    """However it leaves the `with` block."""
    options = ["-m", "twinckpt.run"] if warm else []
    assert_ends_well(tmp_path, then, "--nproc-per-node=2", *options)
    assert (begun(tmp_path, "0"), begun(tmp_path, "1")) == (1, 1)


FIRST_ENDS = """
with Checkpointer({"weight": weight}) as checkpointer:
    checkpointer.save(1, block=True)
    dist.barrier()
dist.destroy_process_group()
if who == "second":
    wait_for("others-have-ended")
"""


def test_the_machine_of_the_root_waits_for_those_that_still_work(tmp_path):
    """Without a root agent their ranks would be stopped."""
    script(tmp_path, FIRST_ENDS)
    launchers = launch_two(tmp_path)
    wait_until_one_has_left(tmp_path)
    (tmp_path / "others-have-ended").touch()
    outputs = [output_of(launcher) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert (begun(tmp_path, "first"), begun(tmp_path, "second")) == (1, 1)


CLOSE_LATER = """
with Checkpointer({"weight": weight}) as checkpointer:
    checkpointer.save(1, block=True)
    if who == "second":
        wait_for("others-have-ended")
dist.destroy_process_group()
"""


def test_a_rank_that_closes_later_than_others_have_ended_does_not_wait_for_storage(tmp_path):
    """The last step is there already."""
    script(tmp_path, CLOSE_LATER)
    settings = f"drain_directory={tmp_path / 'drained'},drain_every_commits=10"
    launchers = launch_two(tmp_path, conf=settings)
    wait_until_one_has_left(tmp_path)
    (tmp_path / "others-have-ended").touch()
    outputs = [output_of(launcher) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert "persistent storage" not in "".join(outputs)
    assert drained_steps(tmp_path / "drained") == (1,)


LOST_IN_CLOSE = """
with Checkpointer({"weight": weight}) as checkpointer:
    if not checkpointer.restore():
        checkpointer.save(1, block=True)
        dist.barrier()
        if who == "second":
            signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
            signal.setitimer(signal.ITIMER_REAL, 0.2)
"""


def test_the_last_step_is_drained_though_a_rank_is_lost_while_it_waits_for_that(tmp_path):
    """What its successor resumes is the last step, and nothing is left to train."""
    script(tmp_path, LOST_IN_CLOSE.replace("weight}", "torch.rand(1 << 19)}"))
    where = f"drain_directory={tmp_path / 'drained'}"
    launchers = launch_two(tmp_path, conf=f"{where},drain_every_commits=10,drain_mib_per_s=0.5")
    outputs = [output_of(launcher) for launcher in launchers]
    assert [launcher.returncode for launcher in launchers] == [0, 0], outputs
    assert begun(tmp_path, "second") == 2
    assert drained_steps(tmp_path / "drained") == (1,)


@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
def test_a_spare_that_was_not_needed_ends_well_with_the_job(tmp_path, monkeypatch, warm):
    """It trains nothing, though it would be enough to begin the job again, and waits for that end.

    However long that takes: `join_timeout` is for machines without which nobody trains.
    """
    script(tmp_path, FIRST_ENDS.replace("second", "first"))
    settings = f"--rdzv-conf=join_timeout=2,event_log={tmp_path / 'events'}"
    options = ("--nnodes=1", "--nproc-per-node=1", settings, *(("-m", "twinckpt.run") * warm))
    port = free_port()
    first = launch(tmp_path, port, *options, who="first")
    wait_until(lambda: (tmp_path / "begun-first").exists(), "the training")
    monkeypatch.setenv("TWINCKPT_WARM_SPARE", str(int(warm)))
    spare = launch(tmp_path, port, *options, who="spare")
    log = EventReader(tmp_path / "events" / "root.jsonl")
    wait_until(lambda: any(e["event"] == "machine_waiting" for e in log.events), "the spare")
    with pytest.raises(subprocess.TimeoutExpired):
        spare.wait(4.0)
    (tmp_path / "others-have-ended").touch()
    outputs = [output_of(launcher) for launcher in (first, spare)]
    assert [first.returncode, spare.returncode] == [0, 0], outputs
    assert not (tmp_path / "begun-spare").exists()
    assert warm or "if it is meant for another job" in outputs[1]  # nobody has named either


ONE_IS_LOST = """
with Checkpointer({"weight": weight}) as checkpointer:
    checkpointer.save((checkpointer.restore() or 0) + 1, block=True)
    dist.barrier()
dist.destroy_process_group()
if who == "LOST":
    wait_for("others-have-ended")
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize(
    ("lost", "options"),
    [("first", ("-m", "twinckpt.run")), ("first", ()), ("second", ("-m", "twinckpt.run"))],
)
def test_a_rank_that_is_lost_when_others_have_ended_ends_its_machine_with_one_line(
    tmp_path, lost, options
):
    """Nobody takes the others' places: it would wait for ever."""
    script(tmp_path, ONE_IS_LOST.replace("LOST", lost))
    launchers = dict(zip(("first", "second"), launch_two(tmp_path, *options), strict=True))
    other = launchers["second" if lost == "first" else "first"]
    wait_until_one_has_left(tmp_path)
    (tmp_path / "others-have-ended").touch()
    output = output_of(launchers[lost])
    assert launchers[lost].returncode != 0
    assert "had ended already" in output
    output_of(other)
    assert other.returncode == 0


SECOND_ONE = """
for step in (1, 2, 3):
    with Checkpointer({"weight": weight}) as checkpointer:
        assert (checkpointer.restore() or 0) == step - 1
        assert checkpointer.save(step, block=True).status == "committed"
dist.destroy_process_group()
"""


def test_a_process_may_make_one_checkpointer_after_the_other(tmp_path):
    """Each has tickets of its own."""
    assert_ends_well(tmp_path, SECOND_ONE, "--nproc-per-node=2")


INHERITED = """
import subprocess
with Checkpointer({"weight": weight}) as checkpointer:
    checkpointer.save(1, block=True)
    if "CHILD" not in os.environ:
        child = subprocess.run(
            [sys.executable, "-c", "import torch; from twinckpt import Checkpointer;"
            "Checkpointer({'weight': torch.ones(8)})"],
            env={**os.environ, "CHILD": "1"}, stderr=subprocess.PIPE, text=True)
        assert "rank 0 is process" in child.stderr, child.stderr
        assert checkpointer.save(2, block=True).status == "committed"
dist.destroy_process_group()
"""


def test_a_program_that_a_rank_starts_does_not_take_its_place(tmp_path):
    """It inherits all variables of the rank."""
    assert_ends_well(tmp_path, INHERITED, "--nproc-per-node=1")
