"""`./reproduce` says what it does, and what to do where something is missing."""

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")


@pytest.fixture
def copy(tmp_path):
    """A fresh checkout's files in a path with a space, without an environment."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("reproduce", "pyproject.toml", "constraints.txt"):
        shutil.copy2(ROOT / name, folder)
    return folder


def programs(folder: Path, *names: str) -> str:
    """Return a PATH that has only these programs."""
    path = folder / "bin"
    path.mkdir()
    for name in names:
        found = shutil.which(name)
        assert found, name
        (path / name).symlink_to(found)
    return str(path)


def reproduce(copy: Path, path: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with a PATH of its own."""
    return subprocess.run(
        [BASH, str(copy / "reproduce"), *arguments],
        env={"PATH": path, "HOME": str(copy)},
        cwd="/",
        capture_output=True,
        text=True,
        timeout=60,
    )


TOOLS = ("dirname", "cat", "cksum", "sed", "uname")


def test_without_python_it_names_the_package(copy):
    """The exact line for Debian and macOS."""
    result = reproduce(copy, programs(copy, "git", *TOOLS))
    assert result.returncode == 1
    assert "sudo apt install python3 python3-venv" in result.stderr
    assert "brew install python@3.12" in result.stderr


def test_without_git_it_names_the_package(copy):
    """Before anything is made."""
    result = reproduce(copy, programs(copy, *TOOLS))
    assert result.returncode == 1
    assert "sudo apt install git" in result.stderr
    assert not (copy / ".venv").exists()


def test_help_lists_every_command(copy):
    """And sets nothing up."""
    result = reproduce(copy, programs(copy, "git", *TOOLS), "--help")
    assert result.returncode == 0
    for command in ("test", "quick", "lint", "shell", "clean"):
        assert f"./reproduce {command}" in result.stdout
    assert not (copy / ".venv").exists()
