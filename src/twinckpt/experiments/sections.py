"""The sections of an experiment's settings, one dataclass each, validated on construction.

Most belong to one experiment; `config` puts them together.
"""

from dataclasses import dataclass, field
from typing import Any

from twinckpt.core.interleaving import Buffer
from twinckpt.core.placement import make_placement
from twinckpt.errors import ConfigurationError
from twinckpt.training.config import at_least, one_of, some_of

MAX_ENUMERATED_MACHINES = 20  # a quarter of a million sets of machines to try
MAX_KILLED_MACHINES = 12  # worker agents on this machine
FAILURES = ("rank_loss", "machine_loss", "group_loss")
RECOVERY_METHODS = (
    *("disk", "ram_local", "ram_peer", "warm_local", "warm_peer", "group_drained", "torchrun"),
)
SOAK_FAILURES = ("rank_loss", "parent_loss", "agent_loss", "machine_loss", "root_loss")
MAX_FAILURES_PER_MINUTE = 30  # a recovery takes seconds, and training is to go on between two


@dataclass
class ClusterSection:
    """The emulated machines; durations in seconds."""

    num_machines: int = 4
    ranks_per_machine: int = 1
    replicas: int = 2
    placement: str = "ring"
    heartbeat_interval_s: float = 0.1
    heartbeat_timeout_s: float = 1.0

    def __post_init__(self) -> None:
        for name in ("num_machines", "ranks_per_machine", "replicas"):
            at_least("cluster." + name, getattr(self, name), 1)
        if self.replicas > self.num_machines:
            raise ConfigurationError(
                f"cluster.replicas={self.replicas} is more than "
                f"cluster.num_machines={self.num_machines}: each replica needs a machine of its own"
            )
        one_of("cluster.placement", self.placement, ("group", "ring", "mixed"))
        try:
            make_placement(self.placement, self.num_machines, self.replicas)
        except ValueError as error:
            raise ConfigurationError(f"cluster.placement={self.placement}: {error}") from error
        if not self.heartbeat_interval_s > 0:
            raise ConfigurationError(
                f"cluster.heartbeat_interval_s={self.heartbeat_interval_s} must be more than 0"
            )
        at_least("cluster.heartbeat_timeout_s", self.heartbeat_timeout_s, 0)
        if self.heartbeat_timeout_s < 3 * self.heartbeat_interval_s:
            raise ConfigurationError(
                f"cluster.heartbeat_timeout_s={self.heartbeat_timeout_s} must be at least three "
                f"times cluster.heartbeat_interval_s={self.heartbeat_interval_s}"
            )


@dataclass
class CheckpointSection:
    """Checkpoints: every `every` steps, `num_slots` versions of a shard, and how often to drain."""

    every: int = 1
    num_slots: int = 2
    drain_every_commits: int = 5

    def __post_init__(self) -> None:
        at_least("checkpoint.every", self.every, 1)
        at_least("checkpoint.num_slots", self.num_slots, 2)
        at_least("checkpoint.drain_every_commits", self.drain_every_commits, 0)


@dataclass
class FailureSection:
    """What is killed: `kinds` of failures, each `repeats` times, `gap_steps` steps apart."""

    kinds: list[str] = field(default_factory=lambda: list(FAILURES))
    repeats: int = 3
    gap_steps: int = 4

    def __post_init__(self) -> None:
        at_least("failure.repeats", self.repeats, 1)
        at_least("failure.gap_steps", self.gap_steps, 1)
        _each_once("failure.kinds", self.kinds)
        for kind in self.kinds:
            one_of("failure.kinds", kind, FAILURES)


@dataclass
class RecoverySection:
    """The rows of `recovery_time` that are measured."""

    methods: list[str] = field(default_factory=lambda: list(RECOVERY_METHODS))

    def __post_init__(self) -> None:
        some_of("recovery.methods", self.methods, RECOVERY_METHODS)

    def check(self, cluster: ClusterSection) -> None:
        """Raise ConfigurationError if a method restores from a peer, but there are no replicas."""
        from_peers = [method for method in self.methods if method.endswith("_peer")]
        if cluster.replicas < 2 and from_peers:
            raise ConfigurationError(
                f"cluster.replicas={cluster.replicas}: no peer has a copy for recovery.methods="
                f"{from_peers[0]}; set cluster.replicas=2, or leave it out of recovery.methods"
            )


@dataclass
class MeasureSection:
    """How long to measure: samples after warm-up, and training steps."""

    repeats: int = 7
    warmup: int = 2
    steps: int = 60
    blocks: int = 7
    block_steps: int = 10

    def __post_init__(self) -> None:
        for name in ("repeats", "steps", "blocks", "block_steps"):
            at_least("measure." + name, getattr(self, name), 1)
        at_least("measure.warmup", self.warmup, 0)

    def check(self, checkpoint: CheckpointSection) -> None:
        """Raise ConfigurationError unless every block of steps has equally many checkpoints."""
        if self.block_steps % checkpoint.every:
            raise ConfigurationError(
                f"measure.block_steps={self.block_steps} must be a multiple of "
                f"checkpoint.every={checkpoint.every}, so that each block has as many checkpoints"
            )


@dataclass
class GoodputSection:
    """What `wasted_time` simulates: sizes of cluster, days, and losses that take a whole rack."""

    machines: list[int] = field(default_factory=lambda: [16, 64, 256, 1000, 4000, 10000])
    days: float = 365.0
    repeats: int = 3
    rack_size: int = 8
    correlated_percents: list[int] = field(default_factory=lambda: [1, 10, 37])

    def __post_init__(self) -> None:
        _some_each_once("goodput.machines", self.machines)
        for num_machines in self.machines:
            at_least("goodput.machines", num_machines, 2)
        at_least("goodput.repeats", self.repeats, 1)
        at_least("goodput.rack_size", self.rack_size, 1)
        if not 0 < self.days <= 3650:
            raise ConfigurationError(f"goodput.days={self.days} must be in (0, 3650]")
        _each_once("goodput.correlated_percents", self.correlated_percents)
        for percent in self.correlated_percents:
            if not 0 <= percent <= 100:
                raise ConfigurationError(
                    f"goodput.correlated_percents={percent} must be between 0 and 100"
                )


@dataclass
class LimitsSection:
    """Sizes of a rank's state in `limits`, on all machines at once and on a single one; devices."""

    sizes_mib: list[int] = field(default_factory=lambda: [64])
    single_sizes_mib: list[int] = field(default_factory=lambda: [256])
    num_tensors: int = 200
    devices: list[str] = field(default_factory=lambda: ["cpu"])

    def __post_init__(self) -> None:
        at_least("limits.num_tensors", self.num_tensors, 3)
        _some_each_once("limits.sizes_mib", self.sizes_mib or self.single_sizes_mib)
        for name in ("sizes_mib", "single_sizes_mib"):
            _each_once("limits." + name, getattr(self, name))
            for size in getattr(self, name):
                at_least("limits." + name, size, 1)
        some_of("limits.devices", self.devices, ("cpu", "cuda"))


@dataclass
class PlacementSection:
    """Computed clusters of `num_machines`, and real clusters of `killed_sizes`.

    In the real ones, every set of up to `max_lost` machines is killed, then every rack of
    `machines_per_rack`.
    """

    num_machines: int = 16
    num_replicas: int = 2
    num_samples: int = 20_000
    killed_sizes: list[int] = field(default_factory=lambda: [6, 5])
    max_lost: int = 3
    machines_per_rack: int = 2
    shard_bytes: int = 1 << 20

    def __post_init__(self) -> None:
        for name in ("num_replicas", "num_samples", "max_lost", "machines_per_rack"):
            at_least("placement." + name, getattr(self, name), 1)
        at_least("placement.shard_bytes", self.shard_bytes, 1)
        _some_each_once("placement.killed_sizes", self.killed_sizes)
        for name, sizes, most in (
            ("num_machines", [self.num_machines], MAX_ENUMERATED_MACHINES),
            ("killed_sizes", self.killed_sizes, MAX_KILLED_MACHINES),
        ):
            for size in sizes:
                if not max(self.num_replicas, self.max_lost) < size <= most:
                    raise ConfigurationError(
                        f"placement.{name}={size} must be more than placement.num_replicas="
                        f"{self.num_replicas} and placement.max_lost={self.max_lost}, and at most "
                        f"{most}"
                    )


@dataclass
class ControlPlaneSection:
    """Simulated clusters of 2 to `max_machines`, `faults` each, from `seed` on; the root's load.

    Each mutant must be found within `mutant_seeds` clusters. The root plans for clusters of
    `root_machines`, and takes `heartbeats` over each number of `connections`, `repeats` times.
    """

    clusters: int = 2000
    faults: int = 20
    seed: int = 0
    max_machines: int = 16
    mutant_seeds: int = 100
    root_machines: list[int] = field(default_factory=lambda: [100, 1000, 10000])
    connections: list[int] = field(default_factory=lambda: [10, 100, 400])
    heartbeats: int = 200_000
    repeats: int = 5

    def __post_init__(self) -> None:
        for name in ("clusters", "mutant_seeds", "repeats"):
            at_least("control_plane." + name, getattr(self, name), 1)
        for name in ("faults", "seed"):
            at_least("control_plane." + name, getattr(self, name), 0)
        at_least("control_plane.max_machines", self.max_machines, 2)
        for name in ("root_machines", "connections"):
            _some_each_once("control_plane." + name, getattr(self, name))
            for number in getattr(self, name):
                at_least("control_plane." + name, number, 2)
        at_least("control_plane.heartbeats", self.heartbeats, max(self.connections))


@dataclass
class SaveCostSection:
    """States of `sizes_mib` per rank, in `num_tensors`, beside the training's own."""

    sizes_mib: list[int] = field(default_factory=lambda: [4, 16, 64])
    num_tensors: int = 200

    def __post_init__(self) -> None:
        at_least("save_cost.num_tensors", self.num_tensors, 3)
        _some_each_once("save_cost.sizes_mib", self.sizes_mib)
        for size in self.sizes_mib:
            at_least("save_cost.sizes_mib", size, 1)


@dataclass
class PeersSection:
    """A state of `size_mib` per rank, and the directory of the peers' packages."""

    size_mib: int = 128
    num_tensors: int = 200
    packages: str = ".peers"

    def __post_init__(self) -> None:
        at_least("peers.size_mib", self.size_mib, 1)
        at_least("peers.num_tensors", self.num_tensors, 3)


@dataclass
class ScalingSection:
    """States of `sizes_mib` per rank on one cluster, and `base_mib` on each of `num_machines`."""

    sizes_mib: list[int] = field(default_factory=lambda: [8, 16, 32, 64])
    num_machines: list[int] = field(default_factory=lambda: [2, 3, 4, 6])
    base_mib: int = 16
    num_tensors: int = 200

    def __post_init__(self) -> None:
        at_least("scaling.base_mib", self.base_mib, 1)
        at_least("scaling.num_tensors", self.num_tensors, 3)
        for size in self.sizes_mib:
            at_least("scaling.sizes_mib", size, 1)
        for name in ("sizes_mib", "num_machines"):
            if len(set(getattr(self, name))) < 3:
                raise ConfigurationError(
                    f"scaling.{name}={getattr(self, name)}: a power law needs three points or more"
                )

    def check(self, cluster: ClusterSection) -> None:
        """Raise ConfigurationError for numbers of machines that cannot place the replicas."""
        for num_machines in self.num_machines:
            at_least("scaling.num_machines", num_machines, max(2, cluster.replicas))
            try:
                make_placement(cluster.placement, num_machines, cluster.replicas)
            except ValueError as error:
                raise ConfigurationError(f"scaling.num_machines={num_machines}: {error}") from error


@dataclass
class InterleavingSection:
    """The emulated link of each machine, and how a checkpoint is fitted into its idle spans.

    Sending s bytes takes at least `link_latency_s` + s / `link_bytes_per_s`, and the receiver
    moves them on at `copy_bytes_per_s` (as a GPU would to its host). The idle spans are learnt in
    `profile_iterations`, then every scheme is measured in `iterations`; DDP reduces gradients in
    buckets of `bucket_bytes`.
    """

    num_machines: int = 2
    num_replicas: int = 2
    link_bytes_per_s: float = 200e6
    link_latency_s: float = 0.0005
    copy_bytes_per_s: float = 200e6
    buffer_bytes: int = 8 << 20
    num_sub_buffers: int = 4
    bucket_bytes: int = 4 << 20
    utilisation: float = 0.9
    profile_iterations: int = 20
    iterations: int = 15

    def __post_init__(self) -> None:
        for name in ("num_machines", "num_replicas", "profile_iterations", "iterations"):
            at_least("interleaving." + name, getattr(self, name), 2)
        for name in ("link_bytes_per_s", "copy_bytes_per_s", "bucket_bytes"):
            at_least("interleaving." + name, getattr(self, name), 1)
        at_least("interleaving.link_latency_s", self.link_latency_s, 0)
        if self.num_replicas > self.num_machines:
            raise ConfigurationError(
                f"interleaving.num_replicas={self.num_replicas} is more than "
                f"interleaving.num_machines={self.num_machines}"
            )
        if not 0 < self.utilisation < 1:
            raise ConfigurationError(
                f"interleaving.utilisation={self.utilisation} must be between 0 and 1"
            )
        try:
            Buffer(self.buffer_bytes, self.num_sub_buffers)
        except ValueError as error:
            raise ConfigurationError(f"interleaving: {error}") from error


@dataclass
class SoakSection:
    """A training of `minutes` in which `kinds` of failures strike at random, drawn from `seed`.

    Lost machines are replaced by one of `num_spares` that wait with imports done; 0: by new ones.
    """

    minutes: float = 5.0
    failures_per_minute: float = 4.0
    kinds: list[str] = field(default_factory=lambda: list(SOAK_FAILURES))
    num_spares: int = 1
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("soak.num_spares", self.num_spares, 0)
        at_least("soak.minutes", self.minutes, 0)
        _one_seed("soak.seed", self.seed)
        if not 0 < self.failures_per_minute <= MAX_FAILURES_PER_MINUTE:
            raise ConfigurationError(
                f"soak.failures_per_minute={self.failures_per_minute} must be more than 0 and at "
                f"most {MAX_FAILURES_PER_MINUTE}: a recovery takes seconds"
            )
        if not self.minutes * self.failures_per_minute >= 1:
            raise ConfigurationError(
                f"soak.minutes={self.minutes} with soak.failures_per_minute="
                f"{self.failures_per_minute}: make it long enough for one failure"
            )
        some_of("soak.kinds", self.kinds, SOAK_FAILURES)

    def check(self, cluster: ClusterSection, checkpoint: CheckpointSection) -> None:
        """Raise ConfigurationError if nothing would survive the failures that are chosen."""
        loses_memory = {"agent_loss", "machine_loss"} & set(self.kinds)
        if loses_memory and cluster.replicas < 2 and not checkpoint.drain_every_commits:
            raise ConfigurationError(
                f"cluster.replicas={cluster.replicas}: nothing survives {min(loses_memory)}; set "
                "cluster.replicas=2 or checkpoint.drain_every_commits, or leave it out of "
                "soak.kinds"
            )


def _some_each_once(name: str, values: list[int]) -> None:
    """Raise ConfigurationError for no value, with nothing to measure or plot, or one twice."""
    if not values:
        raise ConfigurationError(f"{name}=[]: at least one number")
    _each_once(name, values)


def _each_once(name: str, values: list[Any]) -> None:
    """Raise ConfigurationError where the samples of one value would count twice."""
    for value in values:
        if values.count(value) > 1:
            raise ConfigurationError(f"{name}: {value} is there twice")


def _one_seed(name: str, seed: int) -> None:
    """Raise ConfigurationError for what is no seed to every generator of random numbers."""
    if not 0 <= seed < 1 << 32:
        raise ConfigurationError(f"{name}={seed} must be from 0 to {(1 << 32) - 1}")


@dataclass
class OptimizationSection:
    """The training itself: sequences per rank and step, Adam's rate, how the model is sharded."""

    batch: int = 4
    learning_rate: float = 1e-3
    sharding: str = "fsdp"
    seed: int = 0

    def __post_init__(self) -> None:
        at_least("optimization.batch", self.batch, 1)
        at_least("optimization.learning_rate", self.learning_rate, 0)
        _one_seed("optimization.seed", self.seed)
        one_of("optimization.sharding", self.sharding, ("fsdp", "ddp"))
