"""Results as an experiment would write them, with values that the tests choose."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from twinckpt.core.paper_points import paper_points
from twinckpt.results.provenance import write_provenance
from twinckpt.results.samples import Sample, write_samples

RANKS = range(2)
PHASES_S = {
    "detect": 0.2,
    "decide": 0.01,
    "replace": 0.3,
    "restart": 2.0,
    "retrieve": 0.1,
    "first_step": 0.4,
}


def jitter(repeat: int) -> float:
    """A fixed spread of -2 .. +2 per cent over five repeats."""
    return 1 + 0.01 * (repeat % 5 - 2)


def save_cost() -> Iterator[Sample]:
    for method, stall_s, recoverable_s in (
        ("disk", 1.0, 1.0),
        ("ram", 0.005, 0.05),
        ("ram_replica", 0.005, 0.1),
    ):
        for repeat in range(10):
            for rank in RANKS:
                for metric, value, unit in (
                    ("stall_s", stall_s * jitter(repeat), "s"),
                    ("recoverable_s", recoverable_s * jitter(repeat) * (1 + rank), "s"),
                    ("bytes", 1e6, "bytes"),
                ):
                    yield Sample(
                        experiment="save_cost", variant="default", method=method, rank=rank,
                        repeat=repeat, metric=metric, value=value, unit=unit,
                    )  # fmt: skip

    for method, factor in (("dcp_sync", 8.0), ("dcp_thread", 4.0), ("ram_ring", 1.0)):
        for size_mib in (4, 16):
            for repeat in range(5):
                for metric in ("sweep_stall_s", "sweep_done_s"):
                    yield Sample(
                        experiment="save_cost", variant="default", method=method, rank=0,
                        repeat=repeat, step=size_mib, metric=metric, unit="s",
                        value=0.01 * factor * size_mib * jitter(repeat),
                    )  # fmt: skip


def recovery_time() -> Iterator[Sample]:
    scales = {"disk": 3.0, "ram_local": 0.5, "ram_peer": 1.0, "warm_local": 0.1, "warm_peer": 0.2}
    for method, scale in scales.items():
        common = {"experiment": "recovery_time", "variant": "default", "method": method}
        for repeat in range(5):
            phases = {name: value * scale * jitter(repeat) for name, value in PHASES_S.items()}
            total_s = sum(phases.values())
            sums = {"ready": total_s - phases["first_step"], "total": total_s}
            for phase, value in (phases | sums).items():
                yield Sample(
                    **common, repeat=repeat, phase=phase, metric="duration_s", value=value, unit="s"
                )
            for rank in RANKS:
                yield Sample(
                    **common, repeat=repeat, rank=rank, metric="retrieve_s",
                    value=phases["retrieve"], unit="s",
                )  # fmt: skip
            yield Sample(**common, repeat=repeat, metric="identical", value=1.0, unit="bool")
            yield Sample(**common, repeat=repeat, metric="step_s", value=0.3, unit="s")


def throughput() -> Iterator[Sample]:
    for method, rate in (("none", 10.0), ("disk", 4.0), ("ram", 9.8)):
        for repeat in range(8):
            yield Sample(
                experiment="throughput", variant="default", method=method, repeat=repeat,
                metric="iterations_per_s", value=rate * jitter(repeat), unit="iterations_per_s",
            )  # fmt: skip
            if method == "ram":
                yield Sample(
                    experiment="throughput", variant="default", method=method, repeat=repeat,
                    metric="stall_share", value=0.004 * jitter(repeat), unit="ratio",
                )  # fmt: skip


def training() -> Iterator[Sample]:
    for method in ("undisturbed", "disk", "rank_loss", "machine_loss", "group_loss"):
        for step in range(1, 30):
            yield Sample(
                experiment="training", variant="default", method=method, rank=0, step=step,
                metric="bits_per_byte", value=8 / step**0.3, unit="bits_per_byte",
            )  # fmt: skip
        if method != "undisturbed":
            yield Sample(
                experiment="training", variant="default", method=method, metric="identical",
                value=1.0, unit="bool",
            )  # fmt: skip


def wasted_time() -> Iterator[Sample]:
    common = {"experiment": "wasted_time", "variant": "default"}
    for point in paper_points():
        yield Sample(
            **common, method=point.name, metric="predicted", value=point.predicted, unit="ratio"
        )
        if point.error_percent is not None:
            yield Sample(
                **common, method=point.name, metric="error_percent", value=point.error_percent,
                unit="percent",
            )  # fmt: skip
    for phase in ("gemini", "llama3", "racks_37_percent"):
        for method, cost in (("strawman", 5e-4), ("highfreq", 2e-4), ("gemini", 1e-4)):
            for size in (16, 1000):
                at = {"method": method, "phase": phase, "machine": size, "unit": "ratio"}
                yield Sample(**common, **at, metric="goodput_analytic", value=1 / (1 + cost * size))
                for repeat in range(3):
                    yield Sample(
                        **common, **at, metric="goodput", repeat=repeat,
                        value=jitter(repeat) / (1 + cost * size) * 0.98,
                    )  # fmt: skip


def limits() -> Iterator[Sample]:
    seconds = {
        **{"memcpy_s": 0.03, "staging_s": 0.04, "stall_s": 0.001, "loopback_s": 0.1},
        **{"replication_s": 0.12, "extra_s": 0.16, "floor_s": 0.12, "memcpy_in_s": 0.03},
        **{"control_s": 0.01, "memcpy_hashed_s": 0.035},
        **{"restore_local_s": 0.04, "loopback_one_s": 0.05, "restore_peer_s": 0.06},
    }
    needs_peer = {"loopback_one_s", "restore_peer_s"}
    for method in ("ranks4_mib64", "ranks1_mib256"):
        common = {"experiment": "limits", "variant": "default", "method": method}
        for metric, value in seconds.items():
            if method.startswith("ranks1") and metric in needs_peer:
                continue
            for repeat in range(7):
                yield Sample(
                    **common, repeat=repeat, rank=0, metric=metric, value=value * jitter(repeat),
                    unit="s",
                )  # fmt: skip
        overhead = {"metric": "overhead_bytes", "value": float(30 << 20), "unit": "bytes"}
        yield Sample(**common, machine=0, **overhead)


def placement() -> Iterator[Sample]:
    common = {"experiment": "placement", "variant": "default", "method": "group"}
    for size in (16, 6):
        for lost in range(1, 4):
            for how in ("closed_form", "enumeration", "monte_carlo"):
                at = {"machine": size, "step": lost, "phase": how, "value": 1 - lost / size}
                yield Sample(**common, **at, metric="probability", unit="ratio")
        for order in ("aware", "unaware"):
            at = {"machine": size, "step": 1, "phase": order, "value": float(order == "aware")}
            yield Sample(**common, **at, metric="rack_probability", unit="ratio")
    for repeat in range(4):
        for metric in ("recovered", "predicted"):
            at = {"machine": 6, "step": 2, "repeat": repeat, "value": float(repeat > 0)}
            yield Sample(**common, **at, metric=metric, unit="bool")
        at = {"machine": 6, "repeat": repeat, "phase": ("aware", "unaware")[repeat % 2]}
        value = float(repeat % 2 == 0)
        yield Sample(**common, **at, metric="rack_recovered", value=value, unit="bool")


def control_plane() -> Iterator[Sample]:
    common = {"experiment": "control_plane", "variant": "default"}
    for seed in range(10):
        at = {**common, "method": "simulation", "repeat": seed, "machine": 2 + seed}
        yield Sample(**at, metric="violated", value=0.0, unit="bool")
        yield Sample(**at, metric="events", value=1000.0, unit="count")
        yield Sample(**at, metric="commits", value=50.0, unit="count")
        yield Sample(**at, metric="healthy_after_s", value=0.5 * jitter(seed), unit="s")
    for phase, needed in (("a_rule_broken", 3.0), ("another", 1.0)):
        yield Sample(**common, method="mutant", metric="seeds_until_found", phase=phase,
                     value=needed, unit="count")  # fmt: skip
    for repeat in range(3):
        for size in (100, 1000, 10000):
            at = {**common, "method": "root", "machine": size, "repeat": repeat}
            for metric, per_machine_s in (("plan_s", 3e-5), ("commit_s", 5e-5), ("tick_s", 1e-7)):
                seconds = per_machine_s * size * jitter(repeat)
                yield Sample(**at, metric=metric, value=seconds, unit="s")
            yield Sample(**at, metric="told_bytes", value=108.0 * size, unit="bytes")
            yield Sample(**at, metric="heartbeats_s", value=5e-6 * jitter(repeat), unit="s")


def peers() -> Iterator[Sample]:
    common = {"experiment": "peers", "variant": "default"}
    slower = {"twinckpt": 1.0, "torch_save": 4.0, "dcp_sync": 8.0, "dcp_thread": 3.0,
              "dcp_process": 3.5, "lm_resiliency": 2.0}  # fmt: skip
    for repeat in range(7):
        for rank in RANKS:
            at = {**common, "rank": rank, "repeat": repeat, "unit": "s"}
            for method, times in slower.items():
                for metric in ("stall_s", "done_s", "overlapped_stall_s", "restore_s"):
                    value = 0.05 * times * jitter(repeat)
                    yield Sample(**at, method=method, metric=metric, value=value)
                yield Sample(**at, method=method, metric="step_s", value=1 + 0.1 * times)
            for method in ("none", "none_again"):
                yield Sample(**at, method=method, metric="step_s", value=1.0)
            yield Sample(**at, method="torchft", metric="restore_s", value=0.06)


def interleaving() -> Iterator[Sample]:
    common = {"experiment": "interleaving", "variant": "default"}
    schemes = {"none": 0.0, "blocking": 0.1, "naive": 0.03, "no_pipeline": 0.04, "full_schedule": 0}
    for repeat in range(5):
        for rank in RANKS:
            at = {"rank": rank, "repeat": repeat}
            for step in range(3):
                yield Sample(
                    **common, **at, method="none", step=step, metric="idle_span_s",
                    value=(0.1 + step) * jitter(repeat) / 10, unit="s",
                )  # fmt: skip
            for scheme, longer_s in schemes.items():
                took_s = (1 + longer_s) * jitter(repeat)
                own = common | at | {"method": scheme}
                yield Sample(**own, metric="iteration_s", value=took_s, unit="s")
                if scheme != "none":
                    yield Sample(**own, metric="intact", value=1.0, unit="bool")
                for step, phase in enumerate(("training", "checkpoint", "compute")):
                    for metric, value in (("busy_from_s", 0.3 * step), ("busy_until_s", took_s)):
                        yield Sample(
                            **own, step=step, phase=phase, metric=metric, value=value, unit="s"
                        )
    for scheme, longer_s in schemes.items():
        own = common | {"method": scheme, "rank": 0}
        yield Sample(**own, metric="predicted_lengthening_s", value=longer_s, unit="s")
        needed = 4e6 if scheme == "naive" else 1e6
        yield Sample(**own, metric="buffer_bytes", value=needed, unit="bytes")


def scaling() -> Iterator[Sample]:
    """Times that grow exactly with the state, and with the root of the ranks."""
    for num_ranks, size_mib in ((2, 16), (4, 8), (4, 16), (4, 32), (8, 16)):
        for metric in ("stall_s", "done_s", "restore_local_s", "restore_peer_s"):
            for repeat in range(5):
                yield Sample(
                    experiment="scaling", variant="default", rank=0, repeat=repeat, unit="s",
                    method=f"ranks{num_ranks}_mib{size_mib}", metric=metric,
                    value=0.01 * size_mib * num_ranks**0.5 * jitter(repeat),
                )  # fmt: skip


def soak() -> Iterator[Sample]:
    """Three failures, each of which costs two seconds, in 40 steps of a second."""
    common = {"experiment": "soak", "variant": "default"}
    for step in range(40):
        for method in ("undisturbed", "soak"):
            yield Sample(
                **common, method=method, step=step, metric="loss", value=5 / (1 + step),
                unit="nats_per_byte",
            )  # fmt: skip
        own = {"method": "soak", "step": step, "unit": "s"}
        yield Sample(**common, **own, metric="reached_s", value=float(step))
    for repeat, kind in enumerate(("rank_loss", "machine_loss", "root_loss")):
        for metric, later_s in (("struck_s", 0.0), ("went_on_s", 2.0)):
            yield Sample(
                **common, method=kind, machine=repeat, repeat=repeat, metric=metric,
                value=10 * (repeat + 1) + later_s, unit="s",
            )  # fmt: skip
        at = {"method": "soak", "phase": "agent", "machine": 0, "repeat": 0, "step": 10 * repeat}
        rss_bytes = float(repeat << 19)
        yield Sample(**common, **at, metric="rss_bytes", value=rss_bytes, unit="bytes")
        yield Sample(**common, **at, metric="open_descriptors", value=20.0, unit="count")
    for metric in ("identical", "loss_identical"):
        yield Sample(**common, method="soak", metric=metric, value=1.0, unit="bool")
    yield Sample(**common, method="soak", metric="losses_compared", value=160.0, unit="count")
    for phase in ("processes", "files", "descriptors"):
        yield Sample(**common, method="soak", phase=phase, metric="leaked", value=0.0, unit="count")


EXPERIMENTS = {
    "save_cost": save_cost,
    "recovery_time": recovery_time,
    "throughput": throughput,
    "training": training,
    "wasted_time": wasted_time,
    "limits": limits,
    "placement": placement,
    "control_plane": control_plane,
    "peers": peers,
    "interleaving": interleaving,
    "scaling": scaling,
    "soak": soak,
}


def write_experiment(results: Path, name: str) -> None:
    """Write samples and provenance of one experiment below `results`."""
    write_samples(results / name / "samples.csv", EXPERIMENTS[name]())
    write_provenance(
        results / name / "provenance.json",
        {
            "date": "2026-11-23T12:00:00+00:00",
            "git": {"commit": "0123456789abcdef", "dirty": False},
            "python": "3.11.7",
            "packages": {"torch": "2.13.0"},
            "hardware": {
                "cpu_model": "Test & Sons CPU_1", "num_cores": 2, "memory_bytes": 2**34,
                "gpus": [], "system": "Linux",
            },
            "config": {"name": name},
            "config_sha256": "ab" * 32,
            "seeds": [1],
        },
    )  # fmt: skip


@pytest.fixture(scope="session")
def all_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A variant's directory with all experiments; not to be changed."""
    directory = tmp_path_factory.mktemp("all") / "results" / "default"
    for name in EXPERIMENTS:
        write_experiment(directory, name)
    return directory


@pytest.fixture
def results(all_results: Path, tmp_path: Path) -> Path:
    """A copy of it, which a test may change."""
    return shutil.copytree(all_results, tmp_path / "results" / "default")


@pytest.fixture
def summary_of():
    """Computes a directory's summary and gives its metrics by name."""
    from twinckpt.analysis import summary

    def compute(directory: Path) -> dict:
        path = directory / "summary.json"
        assert summary.main(["--results", str(directory), "--output", str(path)]) == 0
        return {metric["name"]: metric for metric in json.loads(path.read_text())["metrics"]}

    return compute
