# Settings, and the names of all results.
import sys

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))
from settings import ALSO_RUNS, EXPERIMENTS, MEASURED_LAYERS, READS, Settings, sources

from twinckpt.analysis.engine import document_suffix

SETTINGS = Settings(config)
RESULTS = SETTINGS.results
LOGS = RESULTS / "logs"
SUFFIX = document_suffix()


# Notebooks about all experiments, or about none.
OVERVIEWS = ("explore", "plan")


wildcard_constraints:
    experiment="|".join(EXPERIMENTS),
    overview="|".join(OVERVIEWS),


def samples():
    return expand(RESULTS / "{experiment}/samples.csv", experiment=EXPERIMENTS)


def figures():
    return expand(
        RESULTS / "figures/{experiment}.{suffix}", experiment=EXPERIMENTS, suffix=["pdf", "png"]
    )


def notebooks():
    return expand(RESULTS / "notebooks/{name}.ipynb", name=(*EXPERIMENTS, *OVERVIEWS))


def documents():
    folder = Path("report") if SETTINGS.is_default else RESULTS / "report"
    return expand(folder / "{document}.{suffix}", document=["report", "slides"], suffix=SUFFIX)
