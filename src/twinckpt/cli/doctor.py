"""`twinckpt doctor`: can this machine do it? One line a check, with what to change.

Exit status 1 if something must be changed first.
"""

import argparse
import os
import resource
import socket
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from twinckpt.cli import CommandError
from twinckpt.memory.slot import available_bytes

MIB = 1 << 20
_SHMEM_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/shmem_enabled")
_MIN_FILES = 1024
_MAX_PORT = 65535


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found: `level` is ok, warn or fail."""

    level: str
    text: str


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("doctor", help="check whether this machine can do it")
    parser.add_argument("--shard-mib", type=int, default=0, help="state of one rank, in MiB")
    parser.add_argument("--ranks", type=int, default=1, help="ranks on this machine (default 1)")
    parser.add_argument("--replicas", type=int, default=2, help="default 2")
    parser.add_argument("--slots", type=int, default=2, help="versions of a shard (default 2)")
    parser.add_argument("--port", type=int, default=29400, help="the root agent's (default 29400)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print all findings; 1 if one of them is a failure."""
    for name in ("ranks", "replicas", "slots"):
        if getattr(args, name) < 1:
            raise CommandError(f"--{name} must be at least 1")
    if args.shard_mib < 0:
        raise CommandError("--shard-mib must be at least 0")
    if not 0 < args.port <= _MAX_PORT:
        raise CommandError(f"--port must be between 1 and {_MAX_PORT}")
    arena_bytes = args.replicas * args.slots * args.ranks * args.shard_mib * MIB
    findings = [
        _kernel(),
        _memory(arena_bytes, available_bytes()),
        _files(),
        _huge_pages(),
        _port(args.port),
        _secret(),
        _plugin(),
        _copies(),
    ]
    for finding in findings:
        print(f"{finding.level:4}  {finding.text}")
    return int(any(finding.level == "fail" for finding in findings))


def _kernel() -> Finding:
    def memfd() -> None:
        os.close(os.memfd_create("twinckpt-doctor"))

    def pidfd() -> None:
        os.close(os.pidfd_open(os.getpid()))

    missing = [name for name, test in (("memfd", memfd), ("pidfd", pidfd)) if not _works(test)]
    if missing:
        needs = "Linux 5.3 or newer, and a container profile that allows them"
        return Finding("fail", f"kernel: no {' and '.join(missing)}; needs {needs}")
    return Finding("ok", f"kernel: {os.uname().sysname} {os.uname().release}, memfd and pidfd")


def _works(test: Callable[[], None]) -> bool:
    try:
        test()
    except (OSError, AttributeError):
        return False
    return True


def _memory(arena_bytes: int, free_bytes: int) -> Finding:
    free = f"{free_bytes // MIB:,} MiB are free"
    if not arena_bytes:
        return Finding("ok", f"memory: {free}; name --shard-mib to see whether the slots fit")
    needed = f"slots take {arena_bytes // MIB:,} MiB (replicas x slots x ranks x shard)"
    if arena_bytes > free_bytes:
        advice = "use fewer replicas or slots, shard over more ranks, or raise the limit"
        return Finding("fail", f"memory: {needed}, {free}: {advice}")
    if arena_bytes > 0.8 * free_bytes:
        return Finding("warn", f"memory: {needed}, {free}: training has to fit beside them")
    return Finding("ok", f"memory: {needed}, {free}")


def _files() -> Finding:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _MIN_FILES:
        advice = f"run ulimit -n {_MIN_FILES} before training"
        return Finding("warn", f"open files: {soft} allowed; {advice}")
    return Finding("ok", f"open files: {soft} allowed")


def _huge_pages() -> Finding:
    try:
        chosen = _SHMEM_HUGE_PAGES.read_text(encoding="ascii").partition("[")[2].partition("]")[0]
    except OSError:
        chosen = "unknown"
    if chosen in ("always", "within_size", "advise"):
        return Finding("ok", f"huge pages for slots: {chosen}")
    advice = f"for fewer page faults: echo advise > {_SHMEM_HUGE_PAGES} (as root)"
    return Finding("warn", f"huge pages for slots: {chosen}; {advice}")


def _port(port: int) -> Finding:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return Finding("ok", f"port {port}: free for the root agent")
    except OSError as error:
        advice = "name another in --rdzv-endpoint=HOST:PORT"
        return Finding("warn", f"port {port}: {error}; if no job of yours holds it, {advice}")


def _secret() -> Finding:
    from twinckpt.errors import ConfigurationError
    from twinckpt.net.secret import load_secret

    try:
        load_secret()
    except ConfigurationError as error:
        return Finding("fail", f"secret: {error}")
    return Finding("ok", "secret: there; all machines of a job need the same one")


def _plugin() -> Finding:
    names = {point.name for point in metadata.entry_points(group="torchrun.handlers")}
    if "twinckpt" not in names:
        advice = "install this package into the environment that torchrun runs in"
        return Finding("fail", f"torchrun: no rendezvous backend twinckpt; {advice}")
    return Finding("ok", f"torchrun: rendezvous backend twinckpt, torch {_version('torch')}")


def _copies() -> Finding:
    from twinckpt.checkpointer import moving

    if moving.STREAMS:
        return Finding("ok", "copies: streamed past the cache")
    advice = "for faster ones: apt install gcc (or your system's C compiler), and install this anew"
    return Finding("warn", f"copies: by memmove, as there was no C compiler; {advice}")


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "is missing"
