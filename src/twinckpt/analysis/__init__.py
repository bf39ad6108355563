"""Samples in, evidence out: statistics, figures, verdicts, report. Never imports torch.

General layout: `dataset` reads a variant's results into one table; `statistics` has medians and
bootstrap intervals; `metrics` defines each headline number; `summary` writes them; `claims`
judges them; `style` and `figures` draw; `macros`, `tables`, `engine`, `html` and `report` make
the documents; `notebook` executes the notebooks; `recoveries` and `recovery_figure` read the
event logs of any job, for `twinckpt timeline`. `summary`, `claims`, `figures`, `report` and
`notebook` are also commands: `python -m twinckpt.analysis.<name> --help`.
"""
