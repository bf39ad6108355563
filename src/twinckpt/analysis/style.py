"""One look for every figure: seaborn theme, colour-blind-safe palette, one colour per method.

A method keeps its colour and its name in all figures, notebooks and slides; so does a phase.
"""

from collections.abc import Iterable

import matplotlib
import seaborn as sns

_PALETTE = sns.color_palette("colorblind").as_hex()
_BLUE, _ORANGE, _GREEN, _RED, _PURPLE, _BROWN, _PINK, _GREY, _YELLOW, _SKY = _PALETTE

# method -> (name in figures and tables, colour)
METHODS = {
    "none": ("no checkpoints", _GREY),
    "none_again": ("no checkpoints, again", _GREY),
    "undisturbed": ("undisturbed", _GREY),
    "disk": ("disk", _RED),
    "group_loss": ("group lost (disk)", _GREEN),
    "ram": ("RAM", _SKY),
    "ram_local": ("own RAM", _SKY),
    "rank_loss": ("rank lost (own RAM)", _SKY),
    "ram_replica": ("RAM, replicated", _BLUE),
    "ram_ring": ("RAM, ring", _BLUE),
    "ram_group": ("RAM, group", _GREEN),
    "ram_mixed": ("RAM, mixed", _GREEN),
    "ram_peer": ("peer's RAM", _BLUE),
    "warm_local": ("own RAM, warm restart", _SKY),
    "warm_peer": ("peer's RAM, warm spare", _BLUE),
    "group_drained": ("group lost, drained step", _YELLOW),
    "torchrun": ("torchrun alone, step 0", _GREY),
    "strawman": ("storage every 3 h (Strawman)", _YELLOW),
    "highfreq": ("storage, as often as it can (HighFreq)", _RED),
    "gemini": ("peers' RAM (GEMINI)", _SKY),
    "twinckpt": ("peers' RAM (twinckpt)", _BLUE),
    "machine_loss": ("machine lost (peer's RAM)", _BLUE),
    "parent_loss": ("warm parent lost", _GREEN),
    "agent_loss": ("worker agent lost", _ORANGE),
    "root_loss": ("root agent lost", _PURPLE),
    "soak": ("under failures", _BLUE),
    "plain": ("plain memcpy + TCP", _GREY),
    "torch_save": ("torch.save + fsync", _RED),
    "dcp_sync": ("DCP", _BROWN),
    "dcp_thread": ("DCP async, thread", _YELLOW),
    "dcp_process": ("DCP async, process", _YELLOW),
    "torchsnapshot": ("torchsnapshot async", _YELLOW),
    "lm_resiliency": ("lm-resiliency", _SKY),
    "nv_resiliency": ("NVIDIA Resiliency Ext.", _GREEN),
    "dlrover": ("DLRover, no replica", _PINK),
    "torchft": ("torchft", _ORANGE),
    "blocking": ("blocking", _RED),
    "naive": ("naive", _YELLOW),
    "no_pipeline": ("no pipeline", _SKY),
    "full_schedule": ("full schedule", _BLUE),
    "group": ("group", _BLUE),
    "ring": ("ring", _ORANGE),
    "mixed": ("mixed", _GREEN),
}
_SPARE = (_PURPLE, _BROWN, _PINK, _YELLOW, _GREEN, _ORANGE)

# phases of a recovery in the order they happen, with their colours
PHASES = {
    "detect": _YELLOW,
    "decide": _PINK,
    "replace": _PURPLE,
    "restart": _GREY,
    "retrieve": _BLUE,
    "first_step": _GREEN,
}

# what keeps an emulated link or the CPU busy
BUSY = {"training": _GREY, "checkpoint": _BLUE, "compute": _GREEN}


def apply() -> None:
    """Set seaborn's theme, and settings that make files reproducible. Called once per figure."""
    sns.set_theme(context="paper", style="whitegrid", palette="colorblind")
    matplotlib.rcParams.update(
        {
            "figure.dpi": 120,
            "savefig.dpi": 200,
            "figure.constrained_layout.use": True,
            "pdf.fonttype": 42,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
        }
    )


def label(method: str) -> str:
    """Return the method's name in figures and tables; an unknown method keeps its own."""
    return METHODS[method][0] if method in METHODS else method.replace("_", " ")


def colours(methods: Iterable[str]) -> dict[str, str]:
    """Return a colour for each method, the same everywhere; spare ones for unknown methods."""
    unknown = sorted(set(methods) - METHODS.keys())
    spare = {method: _SPARE[index % len(_SPARE)] for index, method in enumerate(unknown)}
    return {
        method: METHODS[method][1] if method in METHODS else spare[method] for method in methods
    }


def ordered(methods: Iterable[str]) -> list[str]:
    """Return known methods in the order of `METHODS`, then the others by name."""
    found = set(methods)
    return [method for method in METHODS if method in found] + sorted(found - METHODS.keys())
