"""The experiment `interleaving`, tiny: real training, real chunks, every copy compared."""

import pytest

from twinckpt.experiments.app import Experiment
from twinckpt.experiments.compose import load
from twinckpt.experiments.interleaving import measure

TINY = (
    *("scale=quick", "model.width=64", "model.layers=2", "model.heads=2", "model.context=32"),
    *("interleaving.profile_iterations=3", "interleaving.iterations=2"),
    *("interleaving.bucket_bytes=65536", "interleaving.buffer_bytes=262144"),
)


@pytest.mark.cluster
def test_every_scheme_delivers_whole_copies(tmp_path):
    """Three machines, two remote copies each: what arrived is what was sent."""
    sizes = ("interleaving.num_machines=3", "interleaving.num_replicas=3")
    experiment = Experiment(load("interleaving", [*TINY, *sizes, f"out={tmp_path}"]))
    measure(experiment)
    intact = [sample for sample in experiment.samples if sample.metric == "intact"]
    schemes = {"blocking", "naive", "no_pipeline", "full_schedule"}
    assert {(s.method, s.rank, s.repeat) for s in intact} == {
        (scheme, rank, repeat) for scheme in schemes for rank in range(3) for repeat in range(2)
    }
    assert all(sample.value == 1.0 for sample in intact)
