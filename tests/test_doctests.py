"""Examples in docstrings run as they stand."""

import doctest
from importlib import import_module
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src"


def modules_with_examples() -> list[str]:
    """Return the dotted names of all modules that have a prompt in a docstring."""
    paths = sorted((SOURCE / "twinckpt").rglob("*.py"))
    found = [path for path in paths if "\n    >>> " in path.read_text(encoding="utf-8")]
    return [".".join(path.relative_to(SOURCE).with_suffix("").parts) for path in found]


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name):
    """And there are some."""
    result = doctest.testmod(import_module(name), optionflags=doctest.IGNORE_EXCEPTION_DETAIL)
    assert result.attempted
    assert not result.failed


def test_the_public_interface_has_examples():
    """Where a user begins to read."""
    assert {"twinckpt.checkpointer.checkpointer", "twinckpt.agents.job_settings"} <= {
        *modules_with_examples()
    }
