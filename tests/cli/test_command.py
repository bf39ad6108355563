"""The command itself, whatever its subcommand."""

from importlib.metadata import version

import pytest

from twinckpt.cli import main


def test_the_command_says_which_version_it_is(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"twinckpt {version('twinckpt')}\n"
