"""What a measurement leaves behind: samples (CSV), events (JSON lines), provenance (JSON).

General layout: `samples` is the one schema that all experiments write and all analysis reads,
`jsonl` is how processes log events, `provenance` says where a result came from.
`docs/results-schema.md` says what each clock starts and stops on. Standard library only (and
psutil for the size of memory), so that torch-free processes and the analysis can import it.
"""
