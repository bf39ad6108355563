"""`interleaving`: what sending checkpoints costs an iteration, by scheme (GEMINI §5, Fig. 16).

The training and the transfers between processes are real, over emulated links, which are slowed
to a configured rate. Clocks and their limits are described in docs/results-schema.md.
"""

import dataclasses
import json
from typing import Any

from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.ranks.interleaving import SETTINGS_VARIABLE

TIMEOUT_S = 1800.0


def measure(experiment: Experiment) -> None:
    """Run one job in which the schemes alternate, and collect every rank's samples."""
    section = experiment.config.interleaving
    training = dataclasses.replace(
        experiment.config.training(method="none", steps=1),
        sharding="ddp",
        ddp_bucket_bytes=section.bucket_bytes,
    )
    cluster = experiment.cluster(
        "interleaving",
        ["-m", "twinckpt.experiments.ranks.interleaving"],
        training,
        env={SETTINGS_VARIABLE: json.dumps(dataclasses.asdict(section))},
        num_machines=section.num_machines,
        ranks_per_machine=1,
        replicas=section.num_replicas,
        placement="ring",
    )
    with cluster:
        cluster.wait(TIMEOUT_S)
        for rank in range(section.num_machines):
            log = experiment.log_of(cluster, rank)
            _add_profile(experiment, rank, [e for e in log if e["event"] == "profiled"])
            for entry in log:
                if entry["event"] == "scheduled":
                    _add_schedule(experiment, rank, entry)
                elif entry["event"] == "iteration" and entry["repeat"] >= 0:
                    _add_iteration(experiment, rank, entry)


def _add_profile(experiment: Experiment, rank: int, profile: list[dict[str, Any]]) -> None:
    for repeat, entry in enumerate(profile):
        for span, idle_s in enumerate(entry["spans_s"]):
            place = {"rank": rank, "repeat": repeat, "step": span}
            experiment.add("none", "idle_span_s", idle_s, "s", **place)


def _add_schedule(experiment: Experiment, rank: int, entry: dict[str, Any]) -> None:
    scheme = entry["scheme"]
    experiment.add(scheme, "predicted_lengthening_s", entry["lengthening_s"], "s", rank=rank)
    experiment.add(scheme, "buffer_bytes", entry["buffer_bytes"], "bytes", rank=rank)
    experiment.add(scheme, "chunks", entry["num_chunks"], "count", rank=rank)
    experiment.add(scheme, "shard_bytes", entry["shard_bytes"], "bytes", rank=rank)


def _add_iteration(experiment: Experiment, rank: int, entry: dict[str, Any]) -> None:
    scheme, repeat = entry["scheme"], entry["repeat"]
    experiment.add(scheme, "iteration_s", entry["iteration_s"], "s", rank=rank, repeat=repeat)
    if entry["intact"] is not None:
        experiment.add(scheme, "intact", entry["intact"], "bool", rank=rank, repeat=repeat)
        late = entry["late_chunks"]
        experiment.add(scheme, "late_chunks", late, "count", rank=rank, repeat=repeat)
    for number, (what, start_s, end_s) in enumerate(entry["busy"]):
        place = {"rank": rank, "repeat": repeat, "step": number, "phase": what}
        experiment.add(scheme, "busy_from_s", start_s, "s", **place)
        experiment.add(scheme, "busy_until_s", end_s, "s", **place)


if __name__ == "__main__":
    run_app("interleaving", measure)
