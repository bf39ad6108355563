# Experiments that run only if they are named: `snakemake --cores all soak`. The summary includes
# all that was measured; so does the next run of the whole workflow.
for requested in ON_REQUEST:

    rule:
        name:
            requested
        input:
            RESULTS / f"figures/{requested}.pdf",
            RESULTS / f"{requested}/samples.csv",
        params:
            results=RESULTS,
            also="--also results/summary.json" if SETTINGS.is_default else "",
        shell:
            "python -m twinckpt.analysis.summary --results {params.results}"
            " --output {params.results}/summary.json {params.also}"
