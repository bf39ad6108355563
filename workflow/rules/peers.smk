# Alternatives to this library, measured beside it: `snakemake --cores all peers`. Their packages
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
