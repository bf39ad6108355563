"""`./reproduce` says what it does, and what to do where something is missing."""

import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[2]
BASH = shutil.which("bash")


@pytest.fixture
def copy(tmp_path):
    """A fresh checkout's files in a path with a space, without an environment."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    extension = "src/twinckpt/checkpointer/streaming.c"
    for name in ("reproduce", "pyproject.toml", "setup.py", extension, "constraints.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, folder / name)
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


TOOLS = ("dirname", "cat", "cksum", "sed", "uname", "rm")


def script(path: Path, text: str) -> Path:
    """Write an executable for /bin/sh."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# A Python that makes environments whose pip installs nothing, and says when it makes one.
STAND_IN = """
case "$*" in
"-m venv .venv")
    mkdir -p .venv/bin && cp "$0" .venv/bin/python && echo MADE ;;
*sys.version\\)*) echo "$0 3.12" ;;
esac
exit 0
"""


def set_up(copy: Path, path: str) -> str:
    """Run the command that does least after set-up; return what it says."""
    result = reproduce(copy, path, "shell")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def with_stand_in(copy):
    """A PATH with a Python whose environments cost nothing."""
    path = programs(copy, "git", "mkdir", "cp", "true", *TOOLS)
    script(Path(path) / "python3.12", STAND_IN)
    script(Path(path) / "bash", "exit 0")
    return path


def test_it_sets_up_once(copy, with_stand_in):
    """The second time there is nothing to do."""
    assert "MADE" in set_up(copy, with_stand_in)
    assert "==>" in set_up(copy, with_stand_in)
    assert "installing" not in set_up(copy, with_stand_in)


def test_changed_dependencies_are_installed_into_the_same_environment(copy, with_stand_in):
    """The environment is not made anew if that is not necessary."""
    set_up(copy, with_stand_in)
    with (copy / "constraints.txt").open("a") as file:
        file.write("six==1.16.0\n")
    said = set_up(copy, with_stand_in)
    assert "installing the locked dependencies" in said
    assert "MADE" not in said


def test_a_moved_checkout_gets_an_environment_of_its_own(copy, with_stand_in):
    """Programs of an environment name the place where it was made."""
    set_up(copy, with_stand_in)
    moved = copy.with_name("moved")
    shutil.copytree(copy, moved)
    assert "MADE" in set_up(moved, with_stand_in)


def test_a_broken_environment_is_made_anew(copy, with_stand_in):
    """As after an upgrade of the system's Python."""
    set_up(copy, with_stand_in)
    script(copy / ".venv/bin/python", "exit 1")
    assert "MADE" in set_up(copy, with_stand_in)


def test_an_active_environment_does_not_replace_itself(copy, with_stand_in):
    """It is deleted first; the Python that makes the new one must be another."""
    set_up(copy, with_stand_in)
    script(copy / ".venv/bin/python3.12", 'echo "made by itself" >&2; exit 1')
    script(copy / ".venv/bin/python", "exit 1")
    assert "MADE" in set_up(copy, f"{copy}/.venv/bin:{with_stand_in}")


def test_without_ensurepip_it_names_the_package_of_that_python(copy):
    """Debian has one for each version."""
    path = programs(copy, "git", *TOOLS)
    script(Path(path) / "python3.13", 'case "$*" in *ensurepip*) exit 1 ;; esac; exit 0')
    result = reproduce(copy, path)
    assert result.returncode == 1
    assert "sudo apt install python3.13-venv" in result.stderr


def test_without_python_it_names_the_package(copy):
    """The exact line."""
    result = reproduce(copy, programs(copy, "git", *TOOLS))
    assert result.returncode == 1
    assert "sudo apt install python3 python3-venv" in result.stderr


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
    for command in ("test", "quick", "lint", "docs", "shell", "clean"):
        assert f"./reproduce {command}" in result.stdout
    assert not (copy / ".venv").exists()


def test_docs_are_written_whichever_frameworks_are_installed(tmp_path):
    """The callbacks' pages need the frameworks, which the set-up leaves out."""
    text = (ROOT / "reproduce").read_text(encoding="utf-8")
    (program,) = re.findall(r"^    python - <<'END'\n(.*?)^END$", text, re.DOTALL | re.MULTILINE)
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, check=True, timeout=120)
    pages = {path.stem for path in (tmp_path / "docs/api/twinckpt").glob("*.html")}
    assert {"checkpointer", "errors", "integrations"} <= pages


def test_every_locked_version_installs_on_the_oldest_python():
    """One that asks for a later patch release fails on the Python of Debian 12, say."""
    oldest = "3.11.0"
    refused = []
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        try:
            needed = importlib.metadata.metadata(line.partition("==")[0]).get("Requires-Python")
        except importlib.metadata.PackageNotFoundError:
            continue  # of an extra that is not installed here
        if not SpecifierSet(needed or "").contains(oldest):
            refused.append(f"{line} needs Python {needed}")
    assert refused == []
