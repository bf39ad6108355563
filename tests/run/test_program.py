"""A program sees itself under `-m twinckpt.run` as it does under `python`."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(60)
PROGRAM = """
import atexit, multiprocessing, os, pickle, sys

class Loss:
    pass

def make(number):
    return Loss()

def at_exit():
    print(type(pickle.loads(pickle.dumps(Loss()))) is Loss)

if __name__ == "__main__":
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(type(pool.map(make, [1])[0]).__name__)
    print(__file__, sys.argv, sys.path[0])
    atexit.register(at_exit)
"""


def outcome(folder, *command):
    """Return the exit status, the output and the last line of the messages."""
    done = subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize("how", [["sub/prog.py"], ["-m", "sub.prog"]])
def test_a_program_finds_itself(tmp_path, how):
    """Its classes come back from spawned processes and pickles; its file is absolute."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "prog.py").write_text(PROGRAM)
    plain = outcome(tmp_path, *how, "a b")
    status, output, _ = outcome(tmp_path, "-m", "twinckpt.run", *how, "a b")
    assert plain[0] == 0
    assert (status, output) == plain[:2]


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "ValueError"])
def test_a_traceback_is_the_programs_own(error, tmp_path):
    """An interrupted one too shows no frames of the launcher."""
    (tmp_path / "prog.py").write_text(f"raise {error}('here')\n")
    command = [sys.executable, "-m", "twinckpt.run", "prog.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{error}: here" in done.stderr
    assert "runpy" not in done.stderr
    assert "run.py" not in done.stderr


def test_a_program_configures_its_logging_itself(tmp_path):
    """basicConfig does nothing where somebody has called it before."""
    (tmp_path / "prog.py").write_text(
        "import logging, sys\n"
        "logging.basicConfig(level=logging.INFO, stream=sys.stdout)\n"
        "logging.info('told')\n"
    )
    assert outcome(tmp_path, "-m", "twinckpt.run", "prog.py")[:2] == (0, "INFO:root:told\n")


def test_a_program_that_is_not_there(tmp_path):
    """Status and message of Python, without a traceback of the launcher."""
    plain = outcome(tmp_path, "none.py")
    assert outcome(tmp_path, "-m", "twinckpt.run", "none.py") == plain


def test_a_preloaded_module_that_is_not_there(tmp_path, monkeypatch):
    """One line, before any agent is asked for anything."""
    monkeypatch.setenv("TWINCKPT_AGENT", "none")
    command = [sys.executable, "-m", "twinckpt.run", "--preload", "json,nowhere", "prog.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "twinckpt.run: --preload json,nowhere: No module named 'nowhere'\n"


def test_a_secret_that_no_agent_takes(tmp_path, monkeypatch):
    """One line, without a traceback of the launcher."""
    monkeypatch.setenv("TWINCKPT_AGENT", "none")
    monkeypatch.setenv("TWINCKPT_SECRET", "short")
    (tmp_path / "prog.py").touch()
    done = subprocess.run(
        [sys.executable, "-m", "twinckpt.run", "prog.py"],
        cwd=tmp_path, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "TWINCKPT_SECRET" in done.stderr
    assert "Traceback" not in done.stderr
