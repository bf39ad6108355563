# Settings, and the names of all results.
import sys

sys.path.insert(0, str(Path(workflow.basedir) / "workflow"))
from settings import ALSO_RUNS, EXPERIMENTS, MEASURED_LAYERS, READS, Settings, sources

from twinckpt.analysis.engine import document_suffix
from twinckpt.experiments.config import ON_REQUEST

SETTINGS = Settings(config)
RESULTS = SETTINGS.results
LOGS = RESULTS / "logs"
SUFFIX = document_suffix()
PEERS = ".peers"
# Experiments on request belong to the results once they have been measured.
MEASURED = (*EXPERIMENTS, *(x for x in ON_REQUEST if (RESULTS / x / "samples.csv").exists()))


# Notebooks that belong to no single experiment.
OVERVIEWS = ("explore", "plan")


wildcard_constraints:
    experiment="|".join((*EXPERIMENTS, *ON_REQUEST)),
    overview="|".join(OVERVIEWS),


def samples():
    return expand(RESULTS / "{experiment}/samples.csv", experiment=MEASURED)


def figures():
    return expand(
        RESULTS / "figures/{experiment}.{suffix}", experiment=MEASURED, suffix=["pdf", "png"]
    )


def notebooks():
    return expand(RESULTS / "notebooks/{name}.ipynb", name=(*MEASURED, *OVERVIEWS))


def documents():
    folder = Path("report") if SETTINGS.is_default else RESULTS / "report"
    return expand(folder / "{document}.{suffix}", document=["report", "slides"], suffix=SUFFIX)
