# The report and the slides: PDF if a TeX engine is found, otherwise the same content as HTML.
rule report:
    input:
        RESULTS / "summary.json",
        RESULTS / "claims.json",
        figures(),
        "report/report.tex",
        "report/slides.tex",
        sources("analysis", "results"),
    output:
        report(documents(), caption="../report/document.rst", category="Documents"),
    params:
        results=RESULTS,
        also="--also report" if SETTINGS.is_default else "",
    log:
        LOGS / "report.log",
    shell:
        "python -m twinckpt.analysis.report --results {params.results} --source report"
        " --output {params.results}/report {params.also} > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"
