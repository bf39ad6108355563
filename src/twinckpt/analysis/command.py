"""Runs the analysis commands: an error that a user can mend ends in a sentence and status 1."""

import sys
from collections.abc import Callable
from typing import NoReturn


class UserError(Exception):
    """Something a user can mend; the message says how."""


def run_command(main: Callable[[], int]) -> NoReturn:
    """Run a command's `main` and exit with its status.

    Broken or missing inputs raise `ValueError`, `OSError`, `UserError` or `NotMeasured`, whose
    messages are for users; anything else is our defect and keeps its traceback.
    """
    from twinckpt.analysis.dataset import NotMeasured

    try:
        sys.exit(main())
    except (ValueError, OSError, UserError, NotMeasured) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
