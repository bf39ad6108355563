"""`twinckpt status`: what a running job does now, asked of its root agent.

Without an endpoint it asks this machine's worker agent where the root is.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import sys
import time
from typing import TYPE_CHECKING

from twinckpt.cli import CommandError

if TYPE_CHECKING:
    from twinckpt.agents.status import JobStatus

TIMEOUT_S = 5.0
_CLEAR = "\033[2J\033[H"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("status", help="what a running job does now")
    parser.add_argument(
        "endpoint",
        nargs="?",
        help="HOST:PORT of --rdzv-endpoint, or etcd://HOST:PORT,.../RUN_ID; "
        "default: this machine's job",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument(
        "--watch",
        type=_seconds,
        nargs="?",
        const=1.0,
        metavar="S",
        help="again every S seconds, until Ctrl-C",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the status; 1 if the job is not healthy. Raises CommandError if no job answers.

    A job that is watched may fall silent later: another root agent takes over, or it has ended.
    """
    from twinckpt.errors import TwinckptError

    if args.watch is not None and not 0 < args.watch < math.inf:
        raise CommandError(f"--watch {args.watch:g}: seconds above 0")
    has_answered = False
    while True:
        try:
            status = ask(*_endpoint(args.endpoint))
        except (TwinckptError, OSError, EOFError, ValueError) as error:
            if not has_answered:
                raise CommandError(str(error)) from error
            print(f"twinckpt status: {error}", file=sys.stderr)
        else:
            has_answered = True
            text = json.dumps(dataclasses.asdict(status)) if args.json else "\n".join(lines(status))
            is_screen = args.watch and not args.json and sys.stdout.isatty()
            print(_CLEAR + text if is_screen else text, flush=True)
            if not args.watch:
                return 0 if status.is_healthy else 1
        time.sleep(args.watch)


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"{text!r} is no number of seconds; the endpoint comes before --watch"
        ) from None


def ask(host: str, port: int) -> "JobStatus":
    """Ask the root agent at an address, with the secret and the TLS of the environment."""
    from twinckpt.agents import status
    from twinckpt.agents.job_settings import JobSettings
    from twinckpt.net.secret import load_secret

    tls = JobSettings.load({}).tls.load()
    return status.ask(host, port, load_secret(), tls)


def lines(status: "JobStatus") -> list[str]:
    """Return the status as text."""
    members = [machine for machine in status.machines if machine.index is not None]
    members.sort(key=lambda machine: machine.index or 0)
    waiting = [machine for machine in status.machines if machine.index is None]
    ago = "" if status.committed_ago_s is None else f", {status.committed_ago_s:.1f} s ago"
    on_the_way = ", ".join(map(str, status.undecided)) or "none"
    found = [
        f"{status.state}: generation {status.generation}, {len(members)} machines, "
        f"{status.num_ranks} ranks, {status.replicas} replicas ({status.placement})",
        f"committed step {_or_none(status.committed_step)}{ago}; on the way: {on_the_way}; "
        f"drained step {_or_none(status.drained_step)}",
        f"saves {status.num_saves}: {status.num_skipped} skipped, {status.num_failed} failed; "
        f"{status.num_commits} commits",
    ]
    for machine in [*members, *waiting]:
        place = "waits" if machine.index is None else f"machine {machine.index}"
        domain = f", domain {machine.failure_domain}" if machine.failure_domain else ""
        found.append(
            f"  {place}: {machine.name} at {machine.host}{domain}, {machine.num_copies} copies, "
            f"heard {machine.silent_s:.1f} s ago"
        )
    found.append(f"{status.num_failures} ranks and machines lost")
    for failure in status.failures:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(failure.wall_s))
        found.append(f"  {at} {failure.event}: {failure.what}")
    return found


def _or_none(step: int | None) -> str:
    return "none" if step is None else str(step)


def _endpoint(given: str | None) -> tuple[str, int]:
    from twinckpt.agents.control_store import ETCD_SCHEME, split_address

    if not given:
        return _root_of_this_machine()
    if given.startswith(ETCD_SCHEME):
        return _root_in_etcd(given)
    return split_address(given, 0)  # without a default: a port has to be named


def _root_in_etcd(endpoint: str) -> tuple[str, int]:
    from twinckpt.agents.control_store import open_store
    from twinckpt.errors import AgentUnavailableError

    root = open_store(endpoint).root()
    if root is None:
        raise AgentUnavailableError(f"no root agent is elected at {endpoint}; is /RUN_ID right?")
    return root.host, root.port


def _root_of_this_machine() -> tuple[str, int]:
    """Ask the worker agents of this machine; those of other jobs may have the same secret."""
    from twinckpt.errors import AgentUnavailableError, AuthenticationError, ConfigurationError
    from twinckpt.net.local import RootAnswer, RootQuestion
    from twinckpt.net.local_socket import AgentLink
    from twinckpt.net.secret import load_secret

    roots = set()
    for name in _sockets():
        try:
            with contextlib.closing(AgentLink(name, load_secret())) as link:
                link.send(RootQuestion())
                received = link.receive(TIMEOUT_S)
        except (AgentUnavailableError, AuthenticationError):
            continue
        if received is not None and isinstance(received[0], RootAnswer):
            roots.add((received[0].host, received[0].port))
    if not roots:
        raise AgentUnavailableError(
            "no worker agent of this job runs on this machine; name the job's HOST:PORT, and set "
            "TWINCKPT_SECRET as the job has it"
        )
    if len(roots) > 1:
        found = ", ".join(f"{host}:{port}" for host, port in sorted(roots))
        raise ConfigurationError(f"several jobs run on this machine: name one of {found}")
    return roots.pop()


def _sockets() -> list[str]:
    """Return the names under which worker agents of this machine listen."""
    try:
        with open("/proc/net/unix", errors="replace") as table:  # others name theirs as they like
            return sorted({line.split("@")[1].strip() for line in table if "@twinckpt-" in line})
    except OSError:
        return []
