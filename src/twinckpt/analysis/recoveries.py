"""Failures and recoveries of a job, from the event logs of its agents.

A failure lasts from its first notice in the root agent's log to the next new commit. Events that
machines log meanwhile are put on the root's clock. Lines of the same kernel have the same clock.
The difference to another host's clock is bounded by the messages that both log: a machine hears
something after the root says it, and the root hears something after a machine says it. The
middle of the two bounds is used, and half their distance is the error. A machine without both
bounds is left out. Wall time serves only to leave out lines of other runs.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from twinckpt.results.jsonl import read_jsonl

Event = dict[str, Any]

NOTICED = ("machine_lost", "rank_lost", "generation_broken")
SHOWN = {
    "machine_lost": "machine lost",
    "rank_lost": "rank lost",
    "generation_broken": "generation ended",
    "machine_joined": "machine joined",
    "waiting_for_machines": "machines lacking",
    "steps_lost": "committed steps lost",
    "root_lost": "root agent lost",
    "root_found": "root agent found",
    "joining": "asks for a place",
    "generation_formed": "next generation formed",
    "rank_started": "rank started",
    "restore_asked": "rank asks for its state",
    "fetch_started": "copy begins",
    "copy_lost": "copy lost",
    "restore_served": "state handed to the rank",
    "redundancy_restored": "redundancy restored",
    "committed": "first new step committed",
}
# Events that the root says and a machine hears, and events that a machine says to the root.
HEARD = ("generation_broken", "generation_formed", "redundancy_restored", "committed")
SAID = ("rank_started", "rank_lost")
# Events with which a machine's part in a recovery begins.
BEGINNINGS = ("rank_lost", "generation_broken", "root_lost", "root_found", "joining")
NEARBY_S = 60.0


@dataclass(frozen=True, slots=True)
class Moment:
    """One event of a recovery: seconds after its failure was noticed, and where."""

    at_s: float
    agent: str
    event: Event


@dataclass(frozen=True, slots=True)
class Span:
    """A phase of a recovery, in seconds after its failure was noticed."""

    phase: str
    begin_s: float
    end_s: float


@dataclass(slots=True)
class Failure:
    """The events from the first notice of a failure to the next new commit.

    `job` are the phases of the whole job, `machines` those of each machine, `error_s` how far the
    times of a machine on another host may be off. A phase (docs/configuration.md) ends when
    detect: the root ends the generation; replace: the last new machine has joined; decide: the
    next generation has formed; restart: the last rank asks for its state; retrieve: the last
    rank has it in its machine's RAM; first_step: a new step is committed.
    """

    number: int
    moments: list[Moment]
    job: list[Span] = field(default_factory=list)
    machines: dict[str, list[Span]] = field(default_factory=dict)
    error_s: dict[str, float] = field(default_factory=dict)

    @property
    def is_over(self) -> bool:
        """Return whether a new step was committed after the failure."""
        return any(m.agent == "root" and m.event["event"] == "committed" for m in self.moments)

    @property
    def title(self) -> str:
        """Return the failure's number and what was lost, in words."""
        first = next(m.event for m in self.moments if m.agent == "root")
        lost = [f"{key} {first[key]}" for key in ("rank", "machine") if first.get(key) is not None]
        what = " of ".join(lost) + " lost" if lost else SHOWN[first["event"]]
        return f"failure {self.number}: {what}"


def read(paths: Iterable[Path]) -> list[list[Event]]:
    """Return the events of each log, given as a file or in a directory of `*.jsonl` files.

    Raises OSError or ValueError for a log that cannot be read.
    """
    files = []
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found:
            raise ValueError(f"no *.jsonl in {path}")
        files += found
    return [read_jsonl(path) for path in files]


def failures(logs: Iterable[list[Event]]) -> list[Failure]:
    """Return every failure in the root agent's logs, with the events that machines logged."""
    by_agent: dict[str, list[Event]] = {}
    for log in logs:
        for event in log:
            by_agent.setdefault(_agent(event), []).append(event)
    of_root = by_agent.pop("root", [])
    found = []
    for number, events in enumerate(_from_notice_to_commit(of_root), 1):
        began_s = events[0]["monotonic_s"]
        moments = [Moment(e["monotonic_s"] - began_s, "root", e) for e in events]
        failure = Failure(number, moments)
        for name, log in sorted(by_agent.items()):
            _add_machine(failure, name, _window(log, events))
        _add_phases(failure)
        failure.moments.sort(key=lambda moment: moment.at_s)
        found.append(failure)
    return found


def _agent(event: Event) -> str:
    """Return "root", or the machine's name; old logs without `agent` are the root's."""
    return str(event["machine"]) if event.get("agent") == "worker" else "root"


def _from_notice_to_commit(of_root: Iterable[Event]) -> list[list[Event]]:
    found: list[list[Event]] = []
    is_open = False
    for event in of_root:
        name = event["event"]
        if name == "root_started":
            is_open = False
        elif name in NOTICED and not is_open:
            found.append([])
            is_open = True
        if is_open and name in SHOWN:
            found[-1].append(event)
            is_open = name != "committed"
    return found


def _window(log: Iterable[Event], failure: Sequence[Event]) -> list[Event]:
    """Return what a machine logged in a recovery, from the end of its work to the new commit.

    Return nothing if the machine was not in the generation that ended the recovery.
    """
    begin_s, end_s = failure[0]["wall_s"] - NEARBY_S, failure[-1]["wall_s"] + NEARBY_S
    formed = [e["generation"] for e in failure if e["event"] == "generation_formed"]
    found: list[Event] = []
    is_member = False
    for event in log:
        name = event["event"]
        if not begin_s < event["wall_s"] < end_s:
            continue
        if name == "generation_formed" and event["generation"] in formed[-1:]:
            is_member = True
        if name in SHOWN and (found or name in BEGINNINGS):
            found.append(event)
        if name == "committed":
            if is_member:
                return found
            found = []
    return found if is_member else []


def _add_machine(failure: Failure, name: str, window: Sequence[Event]) -> None:
    of_root = [moment.event for moment in failure.moments if moment.agent == "root"]
    began_s = of_root[0]["monotonic_s"]
    shift = _shift(window, of_root)
    if shift is None:
        return
    shift_s, failure.error_s[name] = shift
    own = [Moment(e["monotonic_s"] - shift_s - began_s, name, e) for e in window]
    failure.moments += own
    formed_s = _last(own, "generation_formed")
    failure.machines[name] = _spans(formed_s, _ends(own))


def _shift(window: Sequence[Event], of_root: Sequence[Event]) -> tuple[float, float] | None:
    """Return the seconds by which a machine's clock is ahead of the root's, and the error.

    None if the logs do not bound the difference on both sides.
    """
    if not window:
        return None
    if window[0]["clock"] == of_root[0]["clock"]:
        return 0.0, 0.0
    at_root_s = {_key(event): event["monotonic_s"] for event in of_root}
    both = [(event, at_root_s[_key(event)]) for event in window if _key(event) in at_root_s]
    most = [e["monotonic_s"] - root_s for e, root_s in both if e["event"] in HEARD]
    least = [e["monotonic_s"] - root_s for e, root_s in both if e["event"] in SAID]
    if not most or not least:
        return None
    return (min(most) + max(least)) / 2, abs(min(most) - max(least)) / 2


def _key(event: Event) -> tuple[Any, ...]:
    return event["event"], event["generation"], event.get("rank")


def _add_phases(failure: Failure) -> None:
    """Split the recovery of the job into phases, which end when they have ended everywhere."""
    of_root = [moment for moment in failure.moments if moment.agent == "root"]
    broken_s, formed_s = _first(of_root, "generation_broken"), _last(of_root, "generation_formed")
    if broken_s is None or formed_s is None:
        return
    joined = [m.at_s for m in of_root if m.event["event"] == "machine_joined"]
    joined_s = max((at_s for at_s in joined if broken_s <= at_s <= formed_s), default=None)
    begin_s = -max(m.event.get("silent_s", 0.0) for m in of_root if m.at_s <= broken_s)
    lost = [m.at_s for m in failure.moments if m.event["event"] == "rank_lost"]
    begin_s = min([begin_s, *(at_s for at_s in lost if at_s <= broken_s)])
    failure.job = _spans(
        begin_s, {"detect": broken_s, "replace": joined_s, "decide": formed_s}
    ) + _spans(formed_s, _ends([m for m in failure.moments if m.at_s >= formed_s]))


def _ends(moments: Sequence[Moment]) -> dict[str, float | None]:
    """Return when the phases after the forming of a generation ended on all of these machines."""
    asked_s, served_s = _last(moments, "restore_asked"), _last(moments, "restore_served")
    if asked_s is None or served_s is None:  # only the root's log: it does not see inside
        asked_s, served_s = _last(moments, "rank_started"), None
    return {"restart": asked_s, "retrieve": served_s, "first_step": _last(moments, "committed")}


def _spans(begin_s: float | None, ends: dict[str, float | None]) -> list[Span]:
    """Return successive phases from their ends; a phase without an end is left out."""
    spans = []
    for phase, end_s in ends.items():
        if begin_s is not None and end_s is not None:
            spans.append(Span(phase, begin_s, max(begin_s, end_s)))
            begin_s = spans[-1].end_s
    return spans


def _first(moments: Iterable[Moment], event: str) -> float | None:
    return min((m.at_s for m in moments if m.event["event"] == event), default=None)


def _last(moments: Iterable[Moment], event: str) -> float | None:
    return max((m.at_s for m in moments if m.event["event"] == event), default=None)
