# What users could take instead, measured beside us: `snakemake --cores all peers`. Their packages
# lie in a directory of their own, which only the ranks of this measurement see.
rule peers_packages:
    input:
        "workflow/peers.txt",
        "workflow/peers-needs.txt",
    output:
        directory(PEERS),
    log:
        LOGS / "peers-packages.log",
    shell:
        "(pip install --quiet --target {output} --no-deps -r {input[0]}"
        " && pip install --quiet --target {output} -r {input[1]})"
        " > {log} 2>&1 || {{ cat {log} >&2; exit 1; }}"


# The summary takes in whatever was measured; so does the next run of the whole workflow.
rule peers:
    input:
        RESULTS / "figures/peers.pdf",
        RESULTS / "peers/samples.csv",
    params:
        results=RESULTS,
        also="--also results/summary.json" if SETTINGS.is_default else "",
    shell:
        "python -m twinckpt.analysis.summary --results {params.results}"
        " --output {params.results}/summary.json {params.also}"
