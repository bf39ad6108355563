"""`--out FILE` of the commands that also draw."""

import argparse
import contextlib
from collections.abc import Iterator
from pathlib import Path

from twinckpt.cli import CommandError

_FORMATS = (".svg", ".pdf", ".png")
_TOLD = ".svg, .pdf or .png"


def add_out(parser: "argparse._ActionsContainer") -> None:
    """Declare the option."""
    parser.add_argument("--out", type=Path, metavar="FILE", help=f"also draw: {_TOLD}")


def check_out(out: Path | None) -> None:
    """Raise CommandError for a file that cannot be drawn, before anything else is done."""
    if out and out.suffix not in _FORMATS:
        raise CommandError(f"--out {out}: must end in {_TOLD}")


@contextlib.contextmanager
def drawing(out: Path) -> Iterator[None]:
    """Draw within: raises CommandError without what draws, or where no file can be written."""
    try:
        yield
    except ImportError as error:
        needs = f"--out needs {error.name}: pip install 'twinckpt[artifact]'"
        raise CommandError(needs) from error
    except OSError as error:
        raise CommandError(f"--out {out}: {error.strerror}") from error
