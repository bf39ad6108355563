"""What notebooks display: a figure as an image, headline metrics as a table."""

import io
from dataclasses import asdict
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from twinckpt.analysis import figures, planning, soak, timeline
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.summary import summarise
from twinckpt.core import paper_points as core_points
from twinckpt.core import paper_predictions as core_predictions
from twinckpt.core.planning import ClusterFacts, candidates, storage_plan


def figure(name: str, data: Dataset) -> Any:
    """One of the report's figures, for display as a notebook cell's value."""
    return _image(figures.draw(name, data))


def recovery_timeline(data: Dataset, repeat: int = 0) -> Any:
    """One recovery of each kind on a clock that starts with the kill."""
    return _image(timeline.recovery(data, repeat))


def training_timeline(data: Dataset) -> Any:
    """Loss and wait of every step of the training runs."""
    return _image(timeline.training(data))


def phases(data: Dataset, repeat: int = 0) -> pd.DataFrame:
    """Seconds of each phase of one recovery of each kind."""
    return timeline.phases(data, repeat).round(4)


def contents(data: Dataset) -> pd.DataFrame:
    """Experiments, methods and metrics, with the number of samples."""
    by = ["experiment", "method"]
    return data.samples.groupby(by).agg(
        metrics=("metric", lambda names: ", ".join(sorted(set(names)))), samples=("value", "size")
    )


def plans(facts: ClusterFacts) -> pd.DataFrame:
    """Storage alone and every possible number of replicas, as `twinckpt plan` lists them."""
    possible, _ = candidates(facts)
    rows = [
        {
            "placement": plan.placement,
            "replicas": plan.num_replicas,
            "every (s)": plan.interval_iterations * facts.iteration_s,
            "safe after (s)": round(plan.safe_s, 3),
            "drain every (h)": round(plan.drain_interval_s / 3600, 3),
            "GiB a machine": round(plan.memory_bytes / 2**30, 1),
            "goodput (%)": round(100 * plan.goodput, 3),
            "dominant": plan.dominant,
        }
        for plan in (storage_plan(facts), *possible)
    ]
    return pd.DataFrame(rows).set_index("placement")


def plan_figure(facts: ClusterFacts) -> Any:
    """The plot of `twinckpt plan`."""
    return _image(planning.draw(facts, [storage_plan(facts), *candidates(facts)[0]]))


def metrics(data: Dataset, experiment: str) -> pd.DataFrame:
    """The experiment's headline metrics with their intervals and what was published."""
    rows = [
        metric | {"meaning": BY_NAME[metric["name"]].definition}
        for metric in summarise(data)["metrics"]
        if BY_NAME[metric["name"]].experiment == experiment
    ]
    columns = ["name", "value", "low", "high", "unit", "n", "seed_value", "paper_value", "meaning"]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def spread(data: Dataset, experiment: str, metric: str) -> pd.DataFrame:
    """Count, median and extremes of a metric by method (and by phase, if there are any)."""
    table = data.select(experiment, metric)
    by = ["method", "phase"] if table.phase.any() else ["method"]
    return table.groupby(by, sort=False).value.agg(["count", "min", "median", "max"])


def soak_failures(data: Dataset) -> pd.DataFrame:
    """Each failure of the soak: its kind, when it struck, when training went on."""
    return soak.failures(data).round(2)


def soak_memory(data: Dataset) -> pd.DataFrame:
    """Looks at each process, and the MiB that it held at the first and the last, by role."""
    table = data.select(soak.EXPERIMENT, "rss_bytes")
    grouped = table.groupby(["phase", "machine", "repeat"]).value
    return (grouped.agg(["count", "first", "last"]) / [1, 1 << 20, 1 << 20]).round(2)


def paper_points() -> pd.DataFrame:
    """The paper's published numbers beside our predictions, with error or whether they hold."""
    columns = ["where", "quantity", "kind", "published", "predicted", "unit"]
    rows = [
        {name: getattr(point, name) for name in columns}
        | {"error_percent": point.error_percent, "holds": point.holds}
        for point in core_points.paper_points()
    ]
    return pd.DataFrame(rows).set_index("where")


def paper_predictions() -> pd.DataFrame:
    """The paper's models on both of its clusters, published or not."""
    rows = [asdict(one) for one in core_predictions.paper_predictions()]
    table = pd.DataFrame(rows).set_index(["model", "machine", "num_machines"])
    return table.assign(ratio=table.storage_s / table.peer_s).round(2)


def _image(figure: Figure) -> Any:
    from IPython.display import Image

    png = io.BytesIO()
    figure.savefig(png, format="png", dpi=110, metadata={"Software": None})
    return Image(png.getvalue())
