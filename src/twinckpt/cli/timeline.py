"""`twinckpt timeline`: each failure of a job and its recovery, from the root agent's event log.

All times are one process's monotonic clock, so only a log with one root agent's events between a
failure and its recovery is comparable; a recovery that a new root cut off is left open. What a
rank does between its start and its first committed step (retrieval, loading, the steps) is one
phase here: the root does not see inside it.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Event = dict[str, Any]
SHOWN = {
    "machine_lost": "machine lost",
    "rank_lost": "rank lost",
    "generation_broken": "generation ended",
    "machine_joined": "machine joined",
    "generation_formed": "next generation formed",
    "rank_started": "rank started",
    "redundancy_restored": "redundancy restored",
    "committed": "first new step committed",
}
TOLD = ("machine", "rank", "exit_code", "reason", "recover_step", "step")


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("timeline", help="show failures and recoveries of a job")
    parser.add_argument("log", type=Path, help="the file that event_log named")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print every failure; 2 for a log that cannot be read."""
    try:
        events = [json.loads(line) for line in args.log.read_text().splitlines()]
        lines = as_lines(failures(events))
    except (OSError, ValueError, KeyError, TypeError) as error:
        print(f"twinckpt timeline: {args.log} is no event log: {error!r}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0


def failures(events: Iterable[Event]) -> list[list[Event]]:
    """Return for each failure what happened from its detection to the next new commit."""
    found: list[list[Event]] = []
    is_open = False
    for event in events:
        name = event["event"]
        if name == "root_started":
            is_open = False
        elif name in ("machine_lost", "rank_lost", "generation_broken") and not is_open:
            found.append([])
            is_open = True
        if is_open and name in SHOWN:
            found[-1].append(event)
            is_open = name != "committed"
    return found


def as_lines(found: list[list[Event]]) -> list[str]:
    """Return the failures as text, each event with seconds since its failure was noticed."""
    if not found:
        return ["no failure in this log"]
    lines = []
    for number, events in enumerate(found, 1):
        began_s = events[0]["monotonic_s"]
        lines.append(f"failure {number}")
        for event in events:
            told = ", ".join(f"{key}={event[key]}" for key in TOLD if event.get(key) is not None)
            lines.append(
                f"{event['monotonic_s'] - began_s:10.3f} s  {SHOWN[event['event']]}: {told}"
            )
        if events[-1]["event"] != "committed":
            lines.append(f"{'':12}  no new step was committed after it")
    return lines
