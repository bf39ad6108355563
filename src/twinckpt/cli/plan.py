"""`twinckpt plan`: how to checkpoint on a given cluster, and what dominates the waste.

A prediction from the numbers given (`core.planning`), not a measurement. Exit status 2 and one
line for inputs that cannot be.
"""

import argparse
import re
from typing import TYPE_CHECKING

from twinckpt.cli import CommandError
from twinckpt.cli.drawing import add_out, check_out, drawing
from twinckpt.core.published import DAY_S
from twinckpt.errors import ConfigurationError

if TYPE_CHECKING:
    from twinckpt.core.planning import ClusterFacts, Plan

GIB = 2**30
YEAR_DAYS = 365
UNITS = {"": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12,
         "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}  # fmt: skip
ADVICE = {
    "stall": "a checkpoint stalls training: save less often, or speed up the copy",
    "lost work": "work since the last checkpoint: save more often, which takes network",
    "detection": "noticing the failure: lower heartbeat_timeout_s",
    "replacement": "waiting for a machine: keep warm spares (warm_spare=1)",
    "warm-up": "processes starting: use -m twinckpt.run, which forks a warm image",
    "retrieval": "reading the state back: it is limited by the network of one machine",
    "group loss": "losing all replicas of a shard: more replicas, or racks that keep them apart",
}


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Declare the command's arguments."""
    parser = subparsers.add_parser("plan", help="recommend replicas, frequency and drain interval")
    need, may = parser.add_argument_group("needed"), parser.add_argument_group("optional")
    need.add_argument("--machines", type=int, required=True)
    need.add_argument("--ranks-per-machine", type=int, required=True)
    need.add_argument("--bytes-per-rank", type=_bytes, required=True, metavar="BYTES",
                      help="state of one rank, as 9.4GiB or 1e10")  # fmt: skip
    need.add_argument("--network-gbit-s", type=float, required=True, help="of one machine")
    need.add_argument("--storage-gib-s", type=float, required=True, help="of all machines together")
    need.add_argument("--memory-gib-s", type=float, required=True, help="copying within a machine")
    need.add_argument("--iteration-s", type=float, required=True)
    need.add_argument("--failures-per-day", type=float, required=True, help="of the whole job")
    may.add_argument("--memory-gib", type=float, help="memory a machine can give to checkpoints")
    may.add_argument("--replicas", type=int, help="with exactly this many, instead of the best")
    may.add_argument(
        "--network-idle-share",
        type=float,
        default=0.15,
        help="of the network, free beside training (default 0.15, GEMINI Fig. 8)",
    )
    may.add_argument(
        "--hardware-share",
        type=float,
        default=1.0,
        help="of the failures that lose a machine's memory (default 1)",
    )
    may.add_argument("--racks", type=int, default=0, help="failure domains; 0: unknown")
    may.add_argument(
        "--rack-share",
        type=float,
        default=0.0,
        help="of these failures that take a whole rack (default 0)",
    )
    may.add_argument("--slots", type=int, default=2, help="versions of a shard (default 2)")
    may.add_argument("--stall-s", type=float, default=0.0, help="of each checkpoint (default 0)")
    may.add_argument("--detection-s", type=float, default=1.0, help="default 1, our heartbeats")
    may.add_argument("--replacement-s", type=float, default=330.0, help="default 330, GEMINI §7")
    may.add_argument("--warm-up-s", type=float, default=253.0, help="default 253, GEMINI Fig. 14")
    add_out(may)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the plan; raises CommandError for impossible inputs."""
    from twinckpt.core.planning import candidates, memory_plan, recommend, storage_plan

    check_out(args.out)
    try:
        facts = _facts(args)
        chosen = recommend(facts) if args.replicas is None else memory_plan(facts, args.replicas)
        plans, reasons = candidates(facts)
        plans = [storage_plan(facts), *plans]
    except ConfigurationError as error:
        raise CommandError(str(error)) from error
    except (ArithmeticError, ValueError) as error:
        raise CommandError(f"no cluster has such figures: {error}") from error
    print("\n".join(as_lines(facts, chosen, plans, reasons)))
    if args.out:
        with drawing(args.out):
            from twinckpt.analysis.planning import draw

            draw(facts, plans).savefig(args.out)
        print(f"\ndrawn: {args.out}")
    return 0


def as_lines(
    facts: "ClusterFacts", chosen: "Plan", plans: "list[Plan]", reasons: list[str]
) -> list[str]:
    """Return the answer as text: the recommendation, all candidates, the causes of waste."""
    from twinckpt.core.planning import SAME_GOODPUT

    lines = [
        f"placement={chosen.placement} replicas={chosen.num_replicas}: checkpoint every "
        f"{_iterations(chosen)} ({_time(chosen.interval_iterations * facts.iteration_s)}), drain "
        f"every {_time(chosen.drain_interval_s)}; expected goodput {100 * chosen.goodput:.2f} %",
        "",
        f"{'':2}{'placement':10}{'replicas':>9}{'every':>10}{'safe after':>12}{'drain every':>13}"
        f"{'RAM/machine':>13}{'lost groups/y':>15}{'goodput':>10}",
    ]
    for plan in plans:
        mark = "*" if plan.num_replicas == chosen.num_replicas else ""
        in_memory = plan.num_replicas > 1
        ram = f"{plan.memory_bytes / GIB:,.4g} GiB" if in_memory else ""
        lost = f"{plan.group_losses_per_day * YEAR_DAYS:,.3g}" if in_memory else ""
        lines.append(
            f"{mark:2}{plan.placement:10}{plan.num_replicas if in_memory else '':>9}"
            f"{_time(plan.interval_iterations * facts.iteration_s):>10}{_time(plan.safe_s):>12}"
            f"{_time(plan.drain_interval_s):>13}{ram:>13}{lost:>15}{100 * plan.goodput:>8.2f} %"
        )
    if plans[0].goodput >= chosen.goodput - SAME_GOODPUT:
        lines.append("  storage alone would do as well here")
    lines += [f"  not possible: {reason}" for reason in reasons]
    wasted = 1 - chosen.goodput
    total = sum(chosen.waste.values())
    lines += ["", f"of the time, {100 * wasted:.2f} % is wasted:"]
    for cause, share in sorted(chosen.waste.items(), key=lambda item: -item[1]):
        if share > 0:
            of_time = wasted * share / total
            lines.append(f"  {cause:12}{100 * of_time:8.3f} %{_time(of_time * DAY_S):>10} a day")
    if total > 0:
        lines.append(f"what dominates is {chosen.dominant}; {ADVICE[chosen.dominant]}")
    return lines


def _facts(args: argparse.Namespace) -> "ClusterFacts":
    from twinckpt.core.planning import ClusterFacts

    return ClusterFacts(
        num_machines=args.machines,
        ranks_per_machine=args.ranks_per_machine,
        bytes_per_rank=args.bytes_per_rank,
        network_bytes_per_s=args.network_gbit_s * 1e9 / 8,
        storage_bytes_per_s=args.storage_gib_s * GIB,
        copy_bytes_per_s=args.memory_gib_s * GIB,
        iteration_s=args.iteration_s,
        failures_per_day=args.failures_per_day,
        memory_bytes=None if args.memory_gib is None else args.memory_gib * GIB,
        network_idle_share=args.network_idle_share,
        hardware_share=args.hardware_share,
        rack_share=args.rack_share,
        num_racks=args.racks,
        num_slots=args.slots,
        detection_s=args.detection_s,
        replacement_s=args.replacement_s,
        warm_up_s=args.warm_up_s,
        stall_s=args.stall_s,
    )


def _bytes(text: str) -> float:
    found = re.fullmatch(r"([0-9.]+(?:e[+-]?[0-9]+)?)\s*([KMGT]I?B)?", text.strip(), re.IGNORECASE)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; say 9.4GiB, 500MB or 1e10")
    try:
        return float(found[1]) * UNITS[(found[2] or "").upper()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a size") from None


def _iterations(plan: "Plan") -> str:
    many = plan.interval_iterations
    return "iteration" if many == 1 else f"{many} iterations"


def _time(seconds: float) -> str:
    for size, name in ((DAY_S, "d"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {name}"
    return f"{seconds:.3g} s"
