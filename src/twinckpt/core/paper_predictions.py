"""What the model says of the paper's other models and clusters (§7.1), published or not.

Sizes are counted from the models' shapes, transfers go at line rate; nothing is fitted.
"""

from dataclasses import dataclass

from twinckpt.core import published as setup

GPUS_PER_MACHINE = 8
SIZES = (4, 8, 16)


@dataclass(frozen=True, slots=True)
class Shape:
    """A transformer of §7.1."""

    name: str
    hidden: int
    intermediate: int
    layers: int

    @property
    def num_parameters(self) -> int:
        """Attention, feed-forward and embedding matrices."""
        block = 4 * self.hidden**2 + 2 * self.hidden * self.intermediate
        return self.layers * block + setup.VOCABULARY * self.hidden

    @property
    def checkpoint_bytes(self) -> int:
        """Weights and Adam's moments."""
        return self.num_parameters * setup.STATE_BYTES_PER_PARAMETER


GPT2_10B = Shape("10B", 2560, 10240, 46)
GPT2_20B = Shape("20B", 5120, 20480, 64)
GPT2_40B = Shape("40B", 5120, 20480, 128)
GPT2_100B = Shape("100B", 8192, 32768, 124)
# Which model the paper trains on which machines.
RUNS = (
    (GPT2_10B, "p3dn", setup.P3DN_NETWORK_BYTES_PER_S),
    (GPT2_20B, "p3dn", setup.P3DN_NETWORK_BYTES_PER_S),
    (GPT2_40B, "p3dn", setup.P3DN_NETWORK_BYTES_PER_S),
    (GPT2_40B, "p4d", setup.P4D_NETWORK_BYTES_PER_S),
    (GPT2_100B, "p4d", setup.P4D_NETWORK_BYTES_PER_S),
)


@dataclass(frozen=True, slots=True)
class PaperPrediction:
    """One model on one cluster: state a GPU, and how long a checkpoint takes either way."""

    model: str
    machine: str
    num_machines: int
    gpu_bytes: float
    storage_s: float
    peer_s: float


def paper_predictions() -> tuple[PaperPrediction, ...]:
    """Return every run at every size; storage has the same bandwidth at all of them."""
    return tuple(
        PaperPrediction(
            shape.name,
            machine,
            size,
            shape.checkpoint_bytes / size / GPUS_PER_MACHINE,
            shape.checkpoint_bytes / setup.STORAGE_BYTES_PER_S,
            shape.checkpoint_bytes / size / network_bytes_per_s,
        )
        for shape, machine, network_bytes_per_s in RUNS
        for size in SIZES
    )
