"""`scaling`: how stall, replication and recovery grow with the ranks and with a rank's state.

Two series that cross: states of all sizes at `cluster.num_machines`, and clusters of all sizes
at `scaling.base_mib`. Clocks are those of `limits`, see docs/results-schema.md.
"""

from twinckpt.experiments.app import Experiment, run_app
from twinckpt.experiments.limits import measure_case


def measure(experiment: Experiment) -> None:
    """Run one cluster per case; the case in which the two series cross runs only once."""
    scaling = experiment.config.scaling
    by_size = {(experiment.config.cluster.num_machines, size) for size in scaling.sizes_mib}
    by_ranks = {(num_machines, scaling.base_mib) for num_machines in scaling.num_machines}
    for num_machines, size_mib in sorted(by_size | by_ranks):
        measure_case(experiment, num_machines, size_mib, scaling.num_tensors)


if __name__ == "__main__":
    run_app("scaling", measure)
