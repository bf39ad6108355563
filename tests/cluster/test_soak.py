"""The soak, short: real failures at random moments, and what it says of them."""

import subprocess
import sys
from collections import Counter

import pytest

from twinckpt.analysis import soak
from twinckpt.analysis.dataset import Dataset
from twinckpt.experiments.compose import config_directory
from twinckpt.experiments.disturbance import schedule

SMALL = ("model=quick", "model.layers=1", "model.width=64", "model.context=32",
         "optimization.batch=1", "data.max_bytes=65536", "cluster=two_machines",
         "cluster.ranks_per_machine=1")  # fmt: skip
FAILURES = ("minutes=0.25", "failures_per_minute=12", "kinds=[rank_loss,machine_loss]", "seed=3")


@pytest.mark.cluster
@pytest.mark.timeout(240)
def test_a_short_soak_ends_as_if_nothing_had_happened(tmp_path):
    """Every loss and the last state are those of the undisturbed run; nothing is left over."""
    out = tmp_path / "default" / "soak"
    command = [sys.executable, "-m", "twinckpt.experiments.soak", "scale=quick", f"out={out}"]
    done = subprocess.run(
        [*command, *SMALL, *FAILURES], cwd=config_directory().parent, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    data = Dataset(out.parent)
    struck = soak.failures(data)
    assert set(struck.kind) == {"rank_loss", "machine_loss"}
    assert (struck.went_on_s > struck.struck_s).all()
    for metric in ("identical", "loss_identical"):
        assert soak.holds(metric)(data).value == 1
    assert soak.total("leaked")(data).value == 0
    assert soak.total("losses_compared")(data).value >= 90


def test_the_schedule_follows_from_its_seed_and_takes_turns():
    """As many of each kind as of the others, a second apart on average."""
    kinds = ["rank_loss", "agent_loss", "root_loss"]
    planned = schedule(kinds, duration_s=3000, per_s=1, seed=7)
    assert planned == schedule(kinds, duration_s=3000, per_s=1, seed=7)
    assert planned != schedule(kinds, duration_s=3000, per_s=1, seed=8)
    counts = Counter(kind for _, kind in planned)
    assert max(counts.values()) - min(counts.values()) <= 1
    assert 2700 < len(planned) < 3300
    assert [at_s for at_s, _ in planned] == sorted(at_s for at_s, _ in planned)


def test_there_is_a_failure_even_in_a_short_soak():
    """Where none was drawn within its time, one strikes at its end."""
    assert [len(schedule(["rank_loss"], 1e-3, 1.0, seed)) for seed in range(20)] == [1] * 20
