"""`-m twinckpt.run` behaves as torchrun does: real torchruns of a real script, side by side."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from helpers import wait_until
from twinckpt.net.ports import free_port

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]
SCRIPT = str(Path(__file__).parent / "scripts" / "behave.py")
TIMEOUT_S = 120


def launch(folder: Path, behaviour: str, *options: str, warm: bool = True, restarts: int = 0):
    """Start torchrun of the script; under `twinckpt.run` if `warm`."""
    port = free_port()
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    rendezvous = ["--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{port}"]
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes=1", "--nproc-per-node=1"),
            f"--max-restarts={restarts}",
            *(rendezvous if warm else ["--standalone"]),
            *(["-m", "twinckpt.run", *options] if warm else []),
            *(SCRIPT, behaviour, "--folder", str(folder)),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": path},
        start_new_session=True,
    )


def finish(process):
    """Return its exit status, output and messages; nothing of it may be left."""
    output, messages = process.communicate(timeout=TIMEOUT_S)
    left = [p.cmdline() for p in psutil.process_iter() if _is_of(process, p)]
    assert not left
    return process.returncode, output, messages


def _is_of(launcher, process):
    try:
        return f"--folder {launcher.args[-1]}" in " ".join(process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.parametrize("behaviour", ["loads_data", "pickles_itself", "ends_properly"])
def test_a_script_that_ends_well(tmp_path, behaviour):
    status, output, messages = finish(launch(tmp_path, behaviour))
    assert status == 0, messages
    assert output == f"end of {behaviour} as __main__\n"
    assert "no connection to" not in messages  # agents end with their job, and that is no news
    if behaviour == "ends_properly":
        assert (tmp_path / "atexit").exists()
        assert (tmp_path / "thread").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_torchrun_reaches_the_script_which_may_take_its_time(tmp_path, number):
    behaviour = "has_handler" if number == signal.SIGTERM else "waits"
    process = launch(tmp_path, behaviour)
    wait_until((tmp_path / "ready").exists, "a script that is ready", TIMEOUT_S)
    process.send_signal(number)
    status, _, messages = finish(process)
    assert status != 0
    if number == signal.SIGTERM:
        assert (tmp_path / "stopped").read_text() == "15"
    else:
        assert "KeyboardInterrupt" in messages


@pytest.mark.parametrize(
    ("behaviour", "exitcode"), [("raises", 1), ("exits", 7), ("crashes", -signal.SIGSEGV)]
)
def test_a_script_that_fails_is_reported_as_torchrun_reports_it(tmp_path, behaviour, exitcode):
    """The exit code, the error file, and the traceback without frames of the launcher."""
    status, output, messages = finish(launch(tmp_path, behaviour))
    assert status == 1
    assert output == ""
    assert f"exitcode  : {exitcode} " in messages
    if behaviour == "raises":
        assert "RuntimeError: the script's own fault" in messages
        assert "error_file: <N/A>" not in messages
        assert "twinckpt/run.py" not in messages
        assert "runpy" not in messages.split("twinckpt.run FAILED")[0].split("Traceback")[1]


def test_a_killed_rank_resumes_and_its_data_loaders_are_gone(tmp_path):
    status, _, messages = finish(launch(tmp_path, "loses_a_rank", restarts=3))
    assert status == 0, messages
    assert (tmp_path / "resumed").exists()


@pytest.mark.parametrize(("restarts", "tries"), [(1, 2), (10, 3)])
def test_a_script_that_fails_again_and_again_ends_the_job(tmp_path, restarts, tries):
    """After `--max-restarts`, or the third time at the same step; with its traceback."""
    status, _, messages = finish(launch(tmp_path, "raises", restarts=restarts))
    assert status == 1
    assert (tmp_path / "tries").read_text() == "x" * tries
    assert "RuntimeError: the script's own fault" in messages
    assert "RendezvousClosedError" not in messages
    assert "\ntwinckpt: the job has ended: " in messages


def test_where_a_preloaded_module_started_threads_nothing_is_forked(tmp_path):
    """It says so, and the script runs all the same, in the process that torchrun started."""
    (tmp_path / "threads.py").write_text(
        "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n"
    )
    status, output, messages = finish(launch(tmp_path, "is_not_forked", "--preload=threads"))
    assert status == 0, messages
    assert output == "end of is_not_forked as __main__\n"
    assert "started threads" in messages


def test_environment_of_a_rank_is_as_under_torchrun(tmp_path):
    """All variables that torchrun sets are there, with the same values but for ports and ids."""
    script = tmp_path / "environment.py"
    script.write_text("import json, os; print(json.dumps(dict(os.environ)))")

    def variables(*options):
        command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=1", *options]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert result.returncode == 0, result.stderr
        return json.loads(result.stdout)

    plain = variables("--standalone", str(script))
    rendezvous = ("--rdzv-backend=twinckpt", f"--rdzv-endpoint=127.0.0.1:{free_port()}")
    warm = variables(*rendezvous, "-m", "twinckpt.run", str(script))
    different = {name for name in plain if plain[name] != warm.get(name)}
    assert different <= {
        *("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_ERROR_FILE"),
        *("TORCHELASTIC_USE_AGENT_STORE", "PYTEST_CURRENT_TEST"),
    }
