# From measurements to the report. `snakemake --cores all`, or with --config:
#   scale=quick|laptop|full|gpu1|gpu4   how long to measure, and the model
#   name=NAME                           keep the results of a variant beside the default ones
#   overrides="KEY=VALUE …"             any setting in conf/, as on an experiment's command line
from snakemake.utils import min_version

min_version("9.0")


report: "workflow/report/workflow.rst"


include: "workflow/rules/common.smk"
include: "workflow/rules/measure.smk"
include: "workflow/rules/analyse.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/peers.smk"
include: "workflow/rules/on_request.smk"


# On a cluster, only measurements are worth a job of their own.
localrules:
    all,
    peers_packages,
    peers,
    scaling,
    soak,
    summary,
    claims,
    figure,
    notebook,
    overview,
    report,


rule all:
    input:
        RESULTS / "summary.json",
        RESULTS / "claims.json",
        figures(),
        notebooks(),
        documents(),
    default_target: True
