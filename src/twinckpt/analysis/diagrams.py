"""The report's drawing of the design: where shards are held, and how a checkpoint gets there."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from twinckpt.analysis import style

WIDTH_IN, HEIGHT_IN = 6.5, 3.3
BLUE, SKY, GREY, ORANGE = "#0173b2", "#56b4e9", "#949494", "#de8f05"


def system() -> Figure:
    """Two machines of a ring with their ranks and slots, the root agent, and storage."""
    style.apply()
    figure = Figure(figsize=(WIDTH_IN, HEIGHT_IN), layout="constrained")
    axis = figure.add_subplot()
    axis.set(xlim=(0, 100), ylim=(0, 50))
    axis.axis("off")
    _box(axis, 28, 42, 44, 7, "root agent: members, commits, recovery", GREY)
    for left, own, other in ((3, "A", "B"), (57, "B", "A")):
        _frame(axis, left, 12, 40, 24, f"machine {own}")
        _box(axis, left + 2, 27, 36, 5, f"rank {own}: training (PyTorch)", ORANGE)
        _box(axis, left + 2, 14, 17, 7, f"slots of {own}", BLUE)
        _box(axis, left + 21, 14, 17, 7, f"twin of {other}", SKY)
        _arrow(axis, (left + 10, 27), (left + 10, 21.2), "stage, seal")
    _arrow(axis, (33, 36.5), (38, 41.6), "")
    _arrow(axis, (67, 36.5), (62, 41.6), "")
    axis.text(50, 39, "sealed on all holders → commit", ha="center", va="center", fontsize=7)
    _arrow(axis, (59, 18.5), (41.2, 18.5), "")
    axis.text(50, 19.2, "replicate", ha="center", va="bottom", fontsize=7)
    _arrow(axis, (20, 13.8), (80, 13.6), "", curve=0.14)
    axis.text(50, 10.3, "replicate", ha="center", va="bottom", fontsize=7)
    _box(axis, 36, 0.5, 28, 5, "persistent storage", GREY)
    _arrow(axis, (10, 13.8), (35.6, 3), "", curve=0.25)
    axis.text(12, 5, "drain, rarely", ha="center", va="center", fontsize=7)
    return figure


def _frame(axis: Axes, x: float, y: float, width: float, height: float, title: str) -> None:
    axis.add_patch(
        FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0.4", fill=False, edgecolor=GREY)
    )
    axis.text(x + 0.5, y + height - 0.5, title, va="top", fontsize=8, fontweight="bold")


def _box(
    axis: Axes, x: float, y: float, width: float, height: float, text: str, colour: str
) -> None:
    axis.add_patch(
        FancyBboxPatch(
            (x, y), width, height, boxstyle="round,pad=0.2", facecolor=colour, alpha=0.3,
            edgecolor=colour,
        )
    )  # fmt: skip
    axis.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=7.5)


def _arrow(
    axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str, curve: float = 0.0
) -> None:
    axis.annotate(
        "", xy=end, xytext=start,
        arrowprops={
            "arrowstyle": "-|>", "color": "black", "linewidth": 0.9,
            "connectionstyle": f"arc3,rad={curve}",
        },
    )  # fmt: skip
    if text:
        middle = ((start[0] + end[0]) / 2 + 0.8, (start[1] + end[1]) / 2)
        axis.text(*middle, text, fontsize=7, va="center")
