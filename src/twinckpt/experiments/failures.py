"""Training runs with failures: kill, wait for the recovery, and split it into phases."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from twinckpt.agents.local_cluster import ClusterFailed, LocalCluster
from twinckpt.core.placement import make_placement
from twinckpt.results.jsonl import rank_log, read_jsonl

TRAINING = ["-m", "twinckpt.training.run"]  # the program whose runs these are
RECOVERY_TIMEOUT_S = 180.0


@dataclass(frozen=True, slots=True)
class Recovery:
    """One failure and its recovery; times are on the host's monotonic clock, in seconds.

    `step_s` is how long a step took before the failure, None if there was only one. `sources` say
    where each rank's state came from: local, peer, disk, or None if it started from scratch.
    """

    killed_s: float
    broken_s: float
    formed_s: float
    built_s: float
    restored_s: float
    stepped_s: float
    lost_steps: int
    resumed_step: int
    step_s: float | None
    retrieve_s: dict[int, float]
    sources: list[str | None]

    def phases(self, *, machine: bool) -> dict[str, float]:
        """Return each phase's duration and two sums, in seconds; see docs/results-schema.md.

        A generation forms once the plan is made and, after a machine's loss, the replacement has
        joined. This wait is therefore `replace` for a machine and `decide` for a rank.
        """
        waited_s = self.formed_s - self.broken_s
        return {
            "detect": self.broken_s - self.killed_s,
            "decide": 0.0 if machine else waited_s,
            "replace": waited_s if machine else 0.0,
            "restart": self.built_s - self.formed_s,
            "retrieve": self.restored_s - self.built_s,
            "first_step": self.stepped_s - self.restored_s,
            "ready": self.restored_s - self.killed_s,
            "total": self.stepped_s - self.killed_s,
        }


class FailureRun:
    """A training on a cluster of which ranks and machines are killed."""

    def __init__(self, cluster: LocalCluster, num_ranks: int) -> None:
        self.cluster = cluster
        self._num_ranks = num_ranks

    def wait_for_step(self, step: int) -> None:
        """Wait until every rank has finished this step in the newest generation."""
        self._wait(
            lambda: all(_steps(log, self._generation())[-1:] >= [step] for log in self._logs())
        )

    def wait_for_checkpoint(self) -> None:
        """Wait until a step of the newest generation is committed, or on every rank's disk."""

        def is_safe() -> bool:
            generation = self._generation()
            return any(
                event["event"] == "committed" and event["generation"] == generation
                for event in self.cluster.events
            ) or all(
                any(e.get("save") == "written" and e["generation"] == generation for e in log)
                for log in self._logs()
            )

        self._wait(is_safe)

    def wait_until_drained(self) -> None:
        """Wait until every machine has drained its part of a step of the newest generation."""

        def is_drained() -> bool:
            drained: dict[int, set[str]] = defaultdict(set)
            for event in self.cluster.events:
                if event["event"] != "drained" or not event["ok"]:
                    continue
                if event["generation"] == self._generation():
                    drained[event["ticket"]].add(event["machine"])
            most = max(map(len, drained.values()), default=0)
            return most == self.cluster.config.num_machines

        self._wait(is_drained)

    def inject(self, kind: str, victim: int) -> Recovery:
        """Kill a rank, a machine, or all holders of its shards; return the recovery once done."""
        generation = self._generation()
        match kind:
            case "rank_loss":
                killed_s = self.cluster.kill_rank(victim)
            case "machine_loss":
                killed_s = self.cluster.kill_machine(victim)
            case _:
                config = self.cluster.config
                placement = make_placement(config.placement, config.num_machines, config.replicas)
                killed_s = self.cluster.kill_machines(placement.holders[victim])
        broken = self.cluster.wait_for_event("generation_broken", after_s=killed_s)
        self._wait(lambda: all(_steps(log, None, generation) for log in self._logs()))
        return self._recovery(generation, killed_s, broken["monotonic_s"])

    def _recovery(self, generation: int, killed_s: float, broken_s: float) -> Recovery:
        """Read the recovery from the logs; a slow one may have taken several generations."""
        logs = self._logs()
        newest = max(
            entry["generation"] for log in logs for entry in log if entry["event"] == "step"
        )
        formed = [
            event["monotonic_s"]
            for event in self.cluster.events
            if event["event"] == "generation_formed" and event["generation"] == newest
        ]
        restored = [_first(log, "restored", newest) for log in logs]
        resumed_step = restored[0]["at_step"]
        paces = [pace for log in logs for pace in _paces(log, generation)]
        trained = max(step for log in logs for step in _steps(log, generation))
        return Recovery(
            killed_s=killed_s,
            broken_s=broken_s,
            formed_s=formed[-1],
            built_s=max(_first(log, "built", newest)["monotonic_s"] for log in logs),
            restored_s=max(entry["monotonic_s"] for entry in restored),
            stepped_s=max(_first(log, "step", newest)["monotonic_s"] for log in logs),
            lost_steps=trained - resumed_step,
            resumed_step=resumed_step,
            step_s=median(paces) if paces else None,
            retrieve_s={
                rank: entry["retrieve_s"]
                for rank, entry in enumerate(restored)
                if "retrieve_s" in entry
            },
            sources=[entry.get("source") for entry in restored],
        )

    def fingerprints(self) -> list[str]:
        """Return each rank's fingerprint at the end of the run."""
        return [log[-1].get("fingerprint", "") for log in self._logs()]

    def fingerprints_at(self, step: int) -> list[str]:
        """Wait until every rank has logged its fingerprint at a step; return the newest of each."""
        self._wait(lambda: all(_fingerprints(log).get(step) for log in self._logs()))
        return [_fingerprints(log)[step] for log in self._logs()]

    def _generation(self) -> int:
        formed = [e for e in self.cluster.events if e["event"] == "generation_formed"]
        return int(formed[-1]["generation"]) if formed else 0

    def _logs(self) -> list[list[dict[str, Any]]]:
        run_dir = self.cluster.run_dir
        return [_read(rank_log(run_dir, rank)) for rank in range(self._num_ranks)]

    def _wait(self, condition: Any) -> None:
        self.cluster.wait_until(condition, timeout_s=RECOVERY_TIMEOUT_S)


def _read(path: Path) -> list[dict[str, Any]]:
    return read_jsonl(path) if path.exists() else []


def _steps(
    log: Iterable[dict[str, Any]], generation: int | None, after_generation: int = -1
) -> list[int]:
    """Return the steps finished in a generation (None: any) that is newer than another one."""
    return [
        entry["step"]
        for entry in log
        if entry["event"] == "step"
        and (generation is None or entry["generation"] == generation)
        and entry["generation"] > after_generation
    ]


def _paces(log: Iterable[dict[str, Any]], generation: int) -> list[float]:
    """Return the seconds between the ends of successive steps of a generation."""
    ends_s = [
        entry["monotonic_s"]
        for entry in log
        if entry["event"] == "step" and entry["generation"] == generation
    ]
    return [after_s - before_s for before_s, after_s in pairwise(ends_s)]


def _fingerprints(log: Iterable[dict[str, Any]]) -> dict[int, str]:
    return {e["step"]: e["fingerprint"] for e in log if e["event"] == "fingerprint"}


def _first(log: Iterable[dict[str, Any]], event: str, generation: int) -> dict[str, Any]:
    for entry in log:
        if entry["event"] == event and entry["generation"] == generation:
            return entry
    raise ClusterFailed(f"a rank logged no {event!r} in generation {generation}")
