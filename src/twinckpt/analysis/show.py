"""What notebooks display: a figure as an image, headline metrics as a table."""

import io
from typing import Any

import pandas as pd

from twinckpt.analysis import figures
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.metrics import BY_NAME
from twinckpt.analysis.summary import summarise
from twinckpt.core import paper_points as core_points


def figure(name: str, data: Dataset) -> Any:
    """One of the report's figures, for display as a notebook cell's value."""
    from IPython.display import Image

    png = io.BytesIO()
    figures.draw(name, data).savefig(png, format="png", dpi=110, metadata={"Software": None})
    return Image(png.getvalue())


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
    """Per method (and phase, where there are any): count, median, extremes of a metric."""
    table = data.select(experiment, metric)
    by = ["method", "phase"] if table.phase.any() else ["method"]
    return table.groupby(by, sort=False).value.agg(["count", "min", "median", "max"])


def paper_points() -> pd.DataFrame:
    """The paper's published numbers beside our predictions, with error or whether they hold."""
    columns = ["where", "quantity", "kind", "published", "predicted", "unit"]
    rows = [
        {name: getattr(point, name) for name in columns}
        | {"error_percent": point.error_percent, "holds": point.holds}
        for point in core_points.paper_points()
    ]
    return pd.DataFrame(rows).set_index("where")
