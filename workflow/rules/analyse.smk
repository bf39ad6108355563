# Samples → statistics, verdicts, figures, notebooks. No experiment runs here.
rule summary:
    input:
        samples(),
        sources("analysis", "results"),
    output:
        summary=RESULTS / "summary.json",
        top_level=["results/summary.json"] if SETTINGS.is_default else [],
    params:
        results=RESULTS,
        also="--also results/summary.json" if SETTINGS.is_default else "",
    log:
        LOGS / "summary.log",
    shell:
        "python -m twinckpt.analysis.summary --results {params.results} --output {output.summary} {params.also}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule claims:
    input:
        sources("analysis", "results"),
        summary=RESULTS / "summary.json",
    output:
        report(RESULTS / "claims.json", caption="../report/verdicts.rst", category="Verdicts"),
    log:
        LOGS / "claims.log",
    shell:
        "python -m twinckpt.analysis.claims --summary {input.summary} --output {output}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule figure:
    input:
        RESULTS / "{experiment}/samples.csv",
        sources("analysis", "results"),
    output:
        pdf=RESULTS / "figures/{experiment}.pdf",
        png=report(
            RESULTS / "figures/{experiment}.png",
            caption="../report/figure.rst",
            category="Figures",
            labels={"experiment": "{experiment}"},
        ),
    params:
        results=RESULTS,
    log:
        LOGS / "figure-{experiment}.log",
    shell:
        "python -m twinckpt.analysis.figures --results {params.results} --output {params.results}/figures"
        " --only {wildcards.experiment} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule notebook:
    input:
        RESULTS / "{experiment}/samples.csv",
        RESULTS / "summary.json",
        sources("analysis", "results"),
        source="notebooks/src/{experiment}.py",
    output:
        RESULTS / "notebooks/{experiment}.ipynb",
    params:
        results=RESULTS,
    log:
        LOGS / "notebook-{experiment}.log",
    shell:
        "python -m twinckpt.analysis.notebook {input.source} {output} --results {params.results}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


rule overview:
    input:
        samples(),
        sources("analysis", "results"),
        source="notebooks/src/{overview}.py",
    output:
        RESULTS / "notebooks/{overview}.ipynb",
    params:
        results=RESULTS,
    log:
        LOGS / "notebook-{overview}.log",
    shell:
        "python -m twinckpt.analysis.notebook {input.source} {output} --results {params.results}"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
