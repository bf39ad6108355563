"""`twinckpt timeline`: each failure of a job and its recovery, from its agents' event logs.

With the root agent's log alone, what ranks do between their start and the first new commit is one
phase; with the machines' logs it is taken apart.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from twinckpt.cli import CommandError
from twinckpt.cli.drawing import add_out, check_out, drawing

if TYPE_CHECKING:
    from twinckpt.analysis.recoveries import Failure

TOLD = ("machine", "rank", "exit_code", "reason", "recover_step", "lost_steps", "source", "step")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("timeline", help="show failures and recoveries of a job")
    parser.add_argument(
        "log", type=Path, nargs="+", help="what event_log named: directories, or files"
    )
    parser.add_argument("--failure", type=int, metavar="N", help="only the Nth failure")
    add_out(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every failure, draw them if asked; raises CommandError for what is no log."""
    from twinckpt.agents.event_log import with_former
    from twinckpt.analysis.recoveries import failures, read

    check_out(args.out)
    try:
        found = failures(read(file for path in args.log for file in with_former(path)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        logs = ", ".join(map(str, args.log))
        raise CommandError(f"{logs} is no event log: {_reason(error)}") from error
    if args.failure is not None:
        if not 1 <= args.failure <= len(found):
            raise CommandError(f"--failure {args.failure}: there are {len(found)}, counted from 1")
        found = [found[args.failure - 1]]
    print("\n".join(as_lines(found)))
    if args.out and found:
        recovered = [failure for failure in found if failure.job]
        if not recovered:
            raise CommandError("nothing to draw: the job has not recovered from any failure")
        with drawing(args.out):
            from twinckpt.analysis.recovery_figure import MAX_FAILURES, draw

            draw(recovered).savefig(args.out)
        left_out = len(recovered) - MAX_FAILURES
        which = f", the last {MAX_FAILURES}; --failure N draws another" if left_out > 0 else ""
        print(f"\ndrawn: {args.out}{which}")
    return 0


def as_lines(found: "list[Failure]") -> list[str]:
    """Return the failures as text, each event with seconds since its failure was noticed."""
    from twinckpt.analysis.recoveries import SHOWN

    if not found:
        return ["no failure in this log"]
    lines = []
    for failure in found:
        took = [f"{s.phase.replace('_', ' ')} {s.end_s - s.begin_s:.3f} s" for s in failure.job]
        lines.append("; ".join([failure.title, *took]))
        for moment in failure.moments:
            event = moment.event
            told = ", ".join(
                f"{key}={event[key]}"
                for key in TOLD
                if event.get(key) is not None and event[key] != moment.agent
            )
            what = f"{SHOWN[event['event']]}: {told}" if told else SHOWN[event["event"]]
            lines.append(f"{moment.at_s:10.3f} s  {moment.agent:12}  {what}")
        for name, error_s in failure.error_s.items():
            if error_s:
                lines.append(f"{'':12}  times of {name} are right within {error_s:.3f} s")
        if not failure.is_over:
            lines.append(f"{'':12}  no new step was committed after it")
    return lines


def _reason(error: Exception) -> str:
    """Return an error in one line; the repr of a UnicodeDecodeError would be the whole file."""
    return f"{type(error).__name__}: {error}"
