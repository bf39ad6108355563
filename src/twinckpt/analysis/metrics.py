"""Every headline number: what it is computed from, its unit, and its published values.

Each is a `Metric`, which has a value only if its samples exist. Published values come from the
seed project's final table and from the GEMINI paper (SOSP 2023); nothing else is typed in.
"""

from collections.abc import Callable

from twinckpt.analysis import (
    control_plane,
    goodput,
    interleaving,
    limits,
    peers,
    placement,
    recovery,
    save_sweep,
    scaling,
    soak,
)
from twinckpt.analysis.dataset import Dataset, NotMeasured
from twinckpt.analysis.metric import Metric, Unit
from twinckpt.analysis.statistics import MS_PER_S, Estimate, exactly, median, percent_more, ratio
from twinckpt.core.paper_points import paper_points

SAVE, RECOVERY, THROUGHPUT, TRAINING = "save_cost", "recovery_time", "throughput", "training"
WASTED_TIME = goodput.EXPERIMENT
LIMITS = limits.EXPERIMENT
PLACEMENT = placement.EXPERIMENT
CONTROL = control_plane.EXPERIMENT
INTERLEAVING = interleaving.EXPERIMENT
SCALING = scaling.EXPERIMENT
SOAK = soak.EXPERIMENT


def _ms(
    experiment: str, metric: str, method: str, phase: str | None = None
) -> Callable[[Dataset], Estimate]:
    return lambda data: median([MS_PER_S * v for v in _s(data, experiment, metric, method, phase)])


def _s(
    data: Dataset, experiment: str, metric: str, method: str, phase: str | None = None
) -> list[float]:
    columns = {"method": method} | ({"phase": phase} if phase is not None else {})
    return data.repeats(experiment, metric, **columns)


def _speedup(
    experiment: str, metric: str, slow: str, fast: str, phase: str | None = None
) -> Callable[[Dataset], Estimate]:
    return lambda data: ratio(
        _s(data, experiment, metric, slow, phase),
        _s(data, experiment, metric, fast, phase),
        paired=experiment != RECOVERY,  # whose methods run one after the other
    )


def _in_each_step(compute: Callable[[Dataset], Estimate]) -> Callable[[Dataset], Estimate]:
    """Return `compute` for trainings with a checkpoint in each step only: fewer would cost less."""

    def checked(data: Dataset) -> Estimate:
        if data.setting(THROUGHPUT, "checkpoint", "every", 1) != 1:
            raise NotMeasured("a training with a checkpoint in each step (checkpoint.every=1)")
        return compute(data)

    return checked


def _device_stall_percent(data: Dataset) -> Estimate:
    if not data.hardware().get("gpus"):
        raise NotMeasured("a training on a GPU (scale=gpu1)")
    return median([100 * v for v in data.repeats(THROUGHPUT, "stall_share", method="ram")])


def _rates(data: Dataset, method: str) -> list[float]:
    return data.repeats(THROUGHPUT, "iterations_per_s", over_ranks="min", method=method)


def _rates_apart(data: Dataset, first: str, second: str) -> Estimate:
    return percent_more(_rates(data, first), _rates(data, second), paired=True)


def _rate(method: str) -> Callable[[Dataset], Estimate]:
    return lambda data: median(_rates(data, method))


def _all_identical(experiment: str, method: str) -> Callable[[Dataset], Estimate]:
    def compute(data: Dataset) -> Estimate:
        values = data.select(experiment, "identical", method=method).value
        return exactly(values.min(), len(values))

    return compute


def _final_bits_per_byte(data: Dataset) -> Estimate:
    table = data.select(TRAINING, "bits_per_byte", method="undisturbed")
    return median(list(table[table.step == table.step.max()].value))


# The units of the paper's points as metrics have them.
POINT_UNITS: dict[str, Unit] = {
    "%": "percent", "x": "x", "min": "min", "s": "s", "GB": "GB", "iterations": "iterations",
    "GPU-h": "GPU-h",
}  # fmt: skip


METRICS = (
    Metric("save_disk_ms", "ms", SAVE, "save to disk: until every rank's file is fsynced",
           _ms(SAVE, "recoverable_s", "disk"), seed_value=7012),
    Metric("save_ram_ms", "ms", SAVE, "save to RAM: until sealed in the RAM of all replicas",
           _ms(SAVE, "recoverable_s", "ram_replica"), seed_value=512),
    Metric("save_speedup_x", "x", SAVE, "disk fsynced over sealed on all replicas",
           _speedup(SAVE, "recoverable_s", "disk", "ram_replica"),
           seed_value=13.7, paper_value=65),
    Metric("save_ram_local_ms", "ms", SAVE, "save to RAM: until sealed in the machine's own RAM",
           _ms(SAVE, "recoverable_s", "ram"), seed_value=512),
    Metric("save_local_speedup_x", "x", SAVE, "disk fsynced over sealed in the machine's own RAM",
           _speedup(SAVE, "recoverable_s", "disk", "ram"), seed_value=13.7),
    Metric("save_disk_stall_ms", "ms", SAVE, "time the training loop waits, disk",
           _ms(SAVE, "stall_s", "disk")),
    Metric("save_ram_stall_ms", "ms", SAVE,
           "time the training loop waits, RAM replicated, if it goes on at once",
           _ms(SAVE, "stall_s", "ram_replica")),
    Metric("save_stall_speedup_x", "x", SAVE, "the loop's wait on disk over its wait on RAM",
           _speedup(SAVE, "stall_s", "disk", "ram_replica")),
    *(
        Metric(f"{clock}_vs_{name}_x", "x", SAVE, f"{words}, over RAM on all replicas; largest",
               save_sweep.over_ram(metric, method))
        for clock, name, metric, method, words in (
            ("save", "dcp", "sweep_done_s", "dcp_sync", "DCP: until recoverable"),
            ("save", "dcp_async", "sweep_done_s", "dcp_thread", "DCP async: until recoverable"),
            ("save", "group", "sweep_done_s", "ram_group", "RAM with groups: until recoverable"),
            ("save_stall", "dcp_async", "sweep_stall_s", "dcp_thread", "DCP async: blocking stall"),
        )
    ),
    Metric("save_bytes", "bytes", SAVE, "state of the largest rank",
           lambda data: median(data.repeats(SAVE, "bytes", method="ram_replica"))),
    Metric("save_disk_bytes", "bytes", SAVE, "what the largest rank writes to disk",
           lambda data: median(data.repeats(SAVE, "bytes", method="disk"))),
    Metric("recovery_disk_ms", "ms", RECOVERY, "load: cold file until live in the model",
           _ms(RECOVERY, "retrieve_s", "disk"), seed_value=820),
    Metric("recovery_ram_ms", "ms", RECOVERY,
           "load: peer's RAM until live in the model; fetched while the rank starts",
           _ms(RECOVERY, "retrieve_s", "ram_peer"), seed_value=134),
    Metric("recovery_speedup_x", "x", RECOVERY, "load from disk over load from a peer's RAM",
           _speedup(RECOVERY, "retrieve_s", "disk", "ram_peer"), seed_value=6.1),
    Metric("recovery_ram_local_ms", "ms", RECOVERY, "load: own machine's RAM until live",
           _ms(RECOVERY, "retrieve_s", "ram_local"), seed_value=134),
    Metric("recovery_local_speedup_x", "x", RECOVERY, "load from disk over load from own RAM",
           _speedup(RECOVERY, "retrieve_s", "disk", "ram_local"), seed_value=6.1),
    Metric("recovery_disk_total_ms", "ms", RECOVERY, "kill to first new step, from disk",
           _ms(RECOVERY, "duration_s", "disk", "total")),
    Metric("recovery_ram_total_ms", "ms", RECOVERY, "kill to first new step, from a peer's RAM",
           _ms(RECOVERY, "duration_s", "ram_peer", "total")),
    Metric("recovery_ram_local_total_ms", "ms", RECOVERY, "kill to first new step, from own RAM",
           _ms(RECOVERY, "duration_s", "ram_local", "total")),
    Metric("recovery_group_total_ms", "ms", RECOVERY,
           "SIGKILL of a replica group to first new step, from a drained step",
           _ms(RECOVERY, "duration_s", "group_drained", "total")),
    Metric("recovery_torchrun_total_ms", "ms", RECOVERY,
           "SIGKILL of a rank to first new step, torchrun alone: training starts anew",
           _ms(RECOVERY, "duration_s", "torchrun", "total")),
    Metric("recovery_total_speedup_x", "x", RECOVERY,
           "SIGKILL of a rank to first new step, restarted by torchrun: disk over own RAM",
           _speedup(RECOVERY, "duration_s", "disk", "ram_local", "total")),
    *(Metric(name, unit, RECOVERY, words, compute) for name, unit, words, compute in recovery.ROWS),
    Metric("throughput_none_it_s", "it/s", THROUGHPUT, "training without checkpoints",
           _rate("none")),
    Metric("throughput_disk_it_s", "it/s", THROUGHPUT, "training with checkpoints to disk",
           _rate("disk"), seed_value=20.1),
    Metric("throughput_ram_it_s", "it/s", THROUGHPUT, "training with checkpoints to peers' RAM",
           _rate("ram"), seed_value=40.3),
    Metric("throughput_overhead_percent", "percent", THROUGHPUT,
           "longer iterations with checkpoints to RAM than without any",
           lambda data: _rates_apart(data, "none", "ram"), paper_value=0),
    Metric("throughput_control_percent", "percent", THROUGHPUT,
           "the same for no checkpoints once more: what the noise is",
           lambda data: _rates_apart(data, "none", "none_again")),
    Metric("throughput_gain_percent", "percent", THROUGHPUT,
           "more iterations/s with checkpoints to RAM than to disk",
           lambda data: _rates_apart(data, "ram", "disk"), seed_value=100),
    Metric("committed_steps_percent", "percent", THROUGHPUT,
           "share of the steps' checkpoints that were committed, one every step",
           _in_each_step(lambda data: median(
               [100 * v for v in data.repeats(
                   THROUGHPUT, "committed_share", over_ranks="min", method="ram")]))),
    Metric("training_overhead_percent", "percent", THROUGHPUT,
           "longer iterations with a checkpoint to RAM in each than without any",
           _in_each_step(lambda data: _rates_apart(data, "none", "ram"))),
    Metric("device_training_stall_percent", "percent", THROUGHPUT,
           "training on a GPU: what the loop waits for a checkpoint every step, of a step",
           _in_each_step(_device_stall_percent)),
    Metric("staging_vs_memcpy_x", "x", LIMITS,
           "what a loop waits that wants its state copied at once, over a memcpy of the same bytes",
           limits.headline("staging_vs_memcpy_x")),
    Metric("stall_vs_staging_percent", "percent", LIMITS,
           "what the loop waits beside an idle host, of blocking staging",
           limits.headline("stall_vs_staging_percent")),
    Metric("training_extra_vs_floor_x", "x", LIMITS,
           "what a checkpoint adds to a CPU-bound step, over one memcpy and one TCP transfer",
           limits.headline("training_extra_vs_floor_x")),
    Metric("training_control_vs_floor_x", "x", LIMITS,
           "the same for a step without a checkpoint: what drift alone makes of it",
           limits.headline("training_control_vs_floor_x")),
    Metric("replication_vs_loopback_x", "x", LIMITS,
           "goodput from staged to committed, of plain TCP between as many pairs",
           limits.headline("replication_vs_loopback_x")),
    Metric("restore_local_vs_memcpy_x", "x", LIMITS,
           "restore from own RAM, verified, over a memcpy of the same bytes",
           limits.headline("restore_local_vs_memcpy_x")),
    Metric("memcpy_hashed_vs_memcpy_x", "x", LIMITS,
           "a streamed copy that hashes each chunk: that restore without its Python",
           limits.headline("memcpy_hashed_vs_memcpy_x")),
    Metric("restore_peer_vs_loopback_x", "x", LIMITS,
           "restore from a peer's RAM, verified, over a plain TCP transfer of the same bytes",
           limits.headline("restore_peer_vs_loopback_x")),
    Metric("single_staging_vs_memcpy_x", "x", LIMITS,
           "one rank alone: blocking staging over a memcpy",
           limits.headline("staging_vs_memcpy_x", alone=True)),
    Metric("single_stall_vs_staging_percent", "percent", LIMITS,
           "one rank alone: what the loop waits beside an idle host, of blocking staging",
           limits.headline("stall_vs_staging_percent", alone=True)),
    Metric("single_restore_local_vs_memcpy_x", "x", LIMITS,
           "one rank alone: restore from own RAM, verified, over a memcpy",
           limits.headline("restore_local_vs_memcpy_x", alone=True)),
    *(
        Metric(
            name.replace("device", "single_device") if alone else name,
            "percent" if name.endswith("percent") else "x", LIMITS,
            f"{words}; {'one rank alone' if alone else 'most ranks at once'}",
            limits.headline(name, on_gpu=True, alone=alone),
        )
        for alone in (False, True)
        for name, words in (
            ("device_staging_vs_pcie_x", "state on a GPU: pinned copy to RAM over staging"),
            ("device_restore_vs_pcie_x", "state on a GPU: pinned copy from RAM over restore"),
            ("device_stall_percent", "state on a GPU: what the loop waits, of a step"),
            ("device_extra_percent", "state on a GPU: longer steps with a checkpoint in each"),
            ("device_control_percent", "the same without any: what the noise is"),
        )
    ),
    Metric("device_committed_percent", "percent", LIMITS,
           "share of those checkpoints that were committed", limits.device_committed_percent),
    Metric("agent_overhead_mib", "MiB", LIMITS,
           "memory of a worker agent beyond its slots", limits.agent_overhead_mib),
    Metric("training_bits_per_byte", "bits_per_byte", TRAINING, "at the undisturbed run's end",
           _final_bits_per_byte),
    Metric("paper_points_max_error_percent", "percent", WASTED_TIME,
           "largest error of the paper's published values, predicted from its set-up",
           goodput.max_paper_error),
    Metric("paper_bounds_hold", "bool", WASTED_TIME,
           "each bound of the paper holds for our prediction", goodput.paper_bounds_hold),
    *(
        Metric(f"paper_{point.name}", POINT_UNITS[point.unit], WASTED_TIME,
               f"predicted: {point.quantity}", goodput.paper_prediction(point.name),
               paper_value=point.published)
        for point in paper_points()
    ),
    *(
        Metric(f"goodput_{method}_{size}_percent", "percent", WASTED_TIME,
               f"simulated, {size} machines, 1.5 % failing a day: {words}",
               goodput.goodput_percent(method, size))
        for size in (1000, 10000)
        for method, words in (
            ("strawman", "storage every 3 h"), ("highfreq", "storage as often as it can"),
            ("gemini", "the paper's GEMINI"), ("twinckpt", "ours on the paper's hardware"),
        )
    ),
    Metric("goodput_gain_1000_x", "x", WASTED_TIME,
           "the same at 1000 machines, GEMINI over storage as often as it can",
           goodput.goodput_ratio("gemini", "highfreq", 1000)),
    Metric("goodput_gemini_1000_software_percent", "percent", WASTED_TIME,
           "simulated, 1000 machines, 1.5 % failing a day, memory intact: GEMINI",
           goodput.goodput_percent("gemini", 1000, "gemini_software")),
    Metric("goodput_racks_naive_percent", "percent", WASTED_TIME,
           "simulated, 1000 machines, 37 % of losses by rack, placement blind to racks",
           goodput.goodput_percent("gemini", 1000, "racks_37_percent")),
    Metric("goodput_racks_aware_percent", "percent", WASTED_TIME,
           "the same with replicas kept out of one rack",
           goodput.goodput_percent("twinckpt", 1000, "racks_37_percent")),
    Metric("goodput_gap_percent", "percent", WASTED_TIME,
           "largest gap, in points, between simulation and closed form up to 1000 machines",
           goodput.max_gap_percent),
    Metric("simulated_year_s", "s", WASTED_TIME,
           "longest simulation of a year, all strategies, up to 10000 machines", goodput.year_s),
    Metric("placement_group_k2_percent", "percent", PLACEMENT,
           "all shards survive, 2 of 16 machines lost, group, enumerated",
           placement.percent_on_paper("group", 2), paper_value=93.3),
    Metric("placement_group_k3_percent", "percent", PLACEMENT,
           "the same with 3 lost", placement.percent_on_paper("group", 3), paper_value=80.0),
    Metric("placement_ring_k3_percent", "percent", PLACEMENT,
           "the same with 3 lost, ring (the paper plots a union bound)",
           placement.percent_on_paper("ring", 3), paper_value=60.0),
    Metric("placement_monte_carlo_error_percent", "percent", PLACEMENT,
           "largest distance of Monte Carlo from enumeration, in points",
           placement.max_monte_carlo_error),
    Metric("placement_kills_as_predicted", "bool", PLACEMENT,
           "every set of machines that was really killed ended as the placement says",
           placement.all_as_predicted),
    Metric("placement_racks_unaware_percent", "percent", PLACEMENT,
           "really killed racks after which all shards were in RAM, placement blind to racks",
           placement.racks_survived("unaware")),
    Metric("placement_racks_aware_percent", "percent", PLACEMENT,
           "the same with replicas kept out of one rack", placement.racks_survived("aware")),
    Metric("simulated_clusters", "count", CONTROL,
           "clusters under random faults in virtual time", control_plane.num_clusters),
    Metric("simulated_events", "count", CONTROL,
           "events after each of which the invariants were checked", control_plane.total("events")),
    Metric("simulated_commits", "count", CONTROL,
           "checkpoints they committed", control_plane.total("commits")),
    Metric("invariant_violations", "count", CONTROL,
           "clusters that broke an invariant", control_plane.num_violations),
    Metric("mutants_planted", "count", CONTROL,
           "wrong rules planted to see whether they are found", control_plane.num_mutants),
    Metric("mutants_missed", "count", CONTROL,
           "wrong rules that no cluster has found", control_plane.mutants_missed),
    Metric("plan_10000_machines_s", "s", CONTROL,
           "root: from the last machine's join until all 10000 are told what to resume",
           control_plane.decision_s("plan_s", 10000)),
    Metric("plan_growth_exponent", "ratio", CONTROL,
           "slope of that against machines, both as logarithms (1 is linear)",
           control_plane.plan_exponent),
    Metric("commit_10000_machines_s", "s", CONTROL,
           "root: all messages of one checkpoint of 10000 machines",
           control_plane.decision_s("commit_s", 10000)),
    Metric("root_heartbeats_per_s", "per_s", CONTROL,
           "heartbeats that a root agent's process takes in over TCP",
           control_plane.heartbeats_per_s),
    *peers.METRICS,
    Metric("interleaving_none_ms", "ms", INTERLEAVING,
           "iteration over emulated links without checkpoints", interleaving.iteration_ms("none")),
    *(
        Metric(f"interleaving_{scheme}_overhead_percent", "percent", INTERLEAVING,
               f"longer iterations over emulated links, a checkpoint in each: {words}",
               interleaving.overhead_percent(scheme), paper_value=published)
        for scheme, words, published in (
            ("blocking", "all of it first", 10.1), ("naive", "one chunk a span", None),
            ("no_pipeline", "many chunks, one buffer", 3.5),
            ("full_schedule", "many chunks, sub-buffers", 0),
        )
    ),
    *(
        Metric(f"interleaving_{scheme}_predicted_percent", "percent", INTERLEAVING,
               f"the same, as the schedule predicts it: {scheme.replace('_', ' ')}",
               interleaving.predicted_overhead_percent(scheme))
        for scheme in ("blocking", "naive", "no_pipeline", "full_schedule")
    ),
    Metric("interleaving_idle_percent", "percent", INTERLEAVING,
           "idle share of an emulated link in an iteration", interleaving.idle_percent),
    Metric("interleaving_span_deviation_percent", "percent", INTERLEAVING,
           "deviation of the longest idle span over its mean (the paper: below 10)",
           interleaving.span_deviation_percent),
    Metric("interleaving_naive_buffer_x", "x", INTERLEAVING,
           "buffer that naive interleaving needs over the reserved one", interleaving.naive_buffer),
    Metric("interleaving_intact", "bool", INTERLEAVING,
           "every copy sent arrived as it was", interleaving.all_intact),
    *(
        Metric(f"scaling_{metric.removesuffix('_s')}_{along}_exponent", "ratio", SCALING,
               f"exponent of the power law fitted to {words}, by {varied}",
               scaling.exponent(metric, along))
        for metric, (words, _) in scaling.TIMES.items()
        for along, varied in scaling.VARIED.items()
    ),
    Metric("soak_failures", "count", SOAK,
           "random failures that struck one training run", soak.num_failures),
    Metric("soak_to_step_s", "s", SOAK,
           "from a failure until every rank has finished its next step, all kinds",
           soak.seconds_to_go_on),
    Metric("soak_loss_identical", "bool", SOAK,
           "every loss logged under failures is that of the undisturbed run, bit for bit",
           soak.holds("loss_identical")),
    Metric("soak_losses_compared", "count", SOAK,
           "losses of which that was found", soak.total("losses_compared")),
    Metric("soak_identical", "bool", SOAK,
           "state of all ranks at the end equals that of the undisturbed run, bit for bit",
           soak.holds("identical")),
    Metric("soak_leaked_processes", "count", SOAK,
           "processes beyond those of the job, at its end and after it",
           soak.total("leaked", phase="processes")),
    Metric("soak_leaked_files", "count", SOAK,
           "temporary files, and steps half drained, that were left over",
           soak.total("leaked", phase="files")),
    Metric("soak_leaked_descriptors", "count", SOAK,
           "descriptors that the operator's process has more than before",
           soak.total("leaked", phase="descriptors")),
    Metric("soak_agent_rss_growth_mib", "MiB", SOAK,
           "resident memory that a worker agent gained from its first look to its last, the worst",
           soak.rss_growth_mib),
    Metric("soak_agent_descriptor_growth", "count", SOAK,
           "the same of its descriptors", soak.growth("open_descriptors")),
    *(
        Metric(f"{experiment}_{method}_identical", "bool", experiment,
               "final parameters equal those of the undisturbed run, bit for bit",
               _all_identical(experiment, method))
        for experiment, methods in (
            (TRAINING, ("rank_loss", "machine_loss", "group_loss")),
            (RECOVERY, ("ram_local", "ram_peer", "disk", "warm_local", "warm_peer",
                        "group_drained", "torchrun")),
        )
        for method in methods
    ),
)  # fmt: skip

BY_NAME = {metric.name: metric for metric in METRICS}
