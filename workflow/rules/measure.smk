# A measurement takes every core, so that no other job runs beside it; none is retried.
rule measure:
    input:
        sources(*MEASURED_LAYERS),
        lambda wildcards: sources(*ALSO_RUNS.get(wildcards.experiment, ())),
        lambda wildcards: expand(
            RESULTS / "{name}/samples.csv", name=READS.get(wildcards.experiment, ())
        ),
        lambda wildcards: SETTINGS.files(wildcards.experiment),
        lambda wildcards: [PEERS] if wildcards.experiment == "peers" else [],
    output:
        samples=RESULTS / "{experiment}/samples.csv",
        provenance=RESULTS / "{experiment}/provenance.json",
        config=report(
            RESULTS / "{experiment}/config.yaml",
            caption="../report/config.rst",
            category="Configurations",
            labels={"experiment": "{experiment}"},
        ),
    params:
        settings=lambda wildcards: SETTINGS.digest(wildcards.experiment),
    log:
        LOGS / "{experiment}.log",
    threads: workflow.cores
    retries: 0
    message:
        "measuring {wildcards.experiment} (progress in {log})"
    shell:
        "python -m twinckpt.experiments.{wildcards.experiment} {SETTINGS.arguments}"
        " out={RESULTS}/{wildcards.experiment} > {log} 2>&1"
        " || {{ cat {log} >&2; exit 1; }}"
