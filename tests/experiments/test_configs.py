"""Every experiment composes at every scale, and impossible settings never start anything."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.errors import ConfigurationError
from twinckpt.experiments.compose import config_directory, load
from twinckpt.experiments.config import EXPERIMENTS, ON_REQUEST
from twinckpt.experiments.recovery_time import METHODS
from twinckpt.experiments.sections import RECOVERY_METHODS
from twinckpt.results.samples import read_samples

SCALES = sorted(path.stem for path in (config_directory() / "scale").glob("*.yaml"))
IMPOSSIBLE = [
    ("modle.layers=2", "'modle.layers'. There is no such setting; --help lists them"),
    ("cluster.replica=2", "cluster.replica"),
    ("model=huge", "model/huge"),
    ("scale=enormous", "scale/enormous"),
    ("cluster.replicas=9", "cluster.replicas=9 is more than cluster.num_machines=4"),
    ("cluster.placement=star", "one of group, ring, mixed"),
    ("cluster.heartbeat_timeout_s=0.1", "at least three times"),
    ("cluster.heartbeat_interval_s=0", "must be more than 0"),
    ("checkpoint.num_slots=1", "checkpoint.num_slots=1 must be at least 2"),
    ("+cluster.replica=2", "cluster.replica: settings can be changed, not added"),
    ("+modle=2", "modle: settings can be changed, not added"),
    ("~goodput", "goodput: settings can be changed, not added or left out"),
    ("measure.steps=many", "measure.steps=many: Value 'many' of type 'str' could not be converted"),
    ("measure.repeats=0", "measure.repeats=0 must be at least 1"),
    ("failure.kinds=[flood]", "failure.kinds=flood"),
    ("recovery.methods=[tape]", "recovery.methods=tape"),
    ("recovery.methods=[]", "at least one of disk"),
    ("limits.devices=[tpu]", "limits.devices=tpu"),
    ("limits.devices=[]", "at least one of cpu, cuda"),
    ("placement.killed_sizes=[3]", "placement.killed_sizes=3 must be more than"),
    ("placement.num_machines=64", "at most 20"),
    ("placement.killed_sizes=[]", "placement.killed_sizes=[]: at least one number"),
    ("control_plane.root_machines=[]", "control_plane.root_machines=[]: at least one number"),
    ("control_plane.heartbeats=9", "control_plane.heartbeats=9 must be at least 400"),
    ("save_cost.sizes_mib=[]", "save_cost.sizes_mib=[]: at least one number"),
    ("goodput.machines=[]", "goodput.machines=[]: at least one number"),
    ("peers.size_mib=0", "peers.size_mib=0 must be at least 1"),
    ("control_plane.max_machines=1", "control_plane.max_machines=1 must be at least 2"),
    ("interleaving.num_replicas=3", "more than interleaving.num_machines=2"),
    ("interleaving.utilisation=1", "between 0 and 1"),
    ("interleaving.num_sub_buffers=0", "num_sub_buffers=0: must be at least 1"),
    ("scaling.sizes_mib=[8,16]", "three points"),
    ("soak.failures_per_minute=0", "more than 0 and at most 30"),
    ("soak.failures_per_minute=100", "a recovery takes seconds"),
    ("soak.minutes=0.1", "long enough for one failure"),
    ("soak.minutes=-1", "soak.minutes=-1.0 must be at least 0"),
    ("soak.kinds=[flood]", "one of rank_loss, parent_loss"),
    ("soak.kinds=[]", "at least one of"),
    ("optimization.sharding=zero", "one of fsdp, ddp"),
    ("model.width=7", "multiple of model.heads"),
    ("data.path=/does/not/exist", "no such file"),
    ("data.path=/é", "data.path=/é: Hydra wants such characters between quotes"),
    ("out=", "out=: name a directory"),
    ("variant='my variant'", "variant=my variant: ASCII letters"),
    ("experiment=soak", "experiment=soak: this is training; for the other one run python -m"),
    ("goodput.machines=[1]", "goodput.machines=1 must be at least 2"),
    ("goodput.correlated_percents=[101]", "between 0 and 100"),
    ("goodput.machines=[16,16]", "goodput.machines: 16 is there twice"),
    ("goodput.correlated_percents=[10,10]", "goodput.correlated_percents: 10 is there twice"),
    ("limits.sizes_mib=[64,64]", "limits.sizes_mib: 64 is there twice"),
    ("failure.kinds=[rank_loss,rank_loss]", "failure.kinds: rank_loss is there twice"),
    ("interleaving.link_bytes_per_s=nan", "interleaving.link_bytes_per_s=nan must be at least 1"),
    ("interleaving.link_latency_s=inf", "interleaving.link_latency_s=inf must be finite"),
    ("cluster.heartbeat_timeout_s=nan", "cluster.heartbeat_timeout_s=nan must be at least 0"),
    ("cluster.heartbeat_timeout_s=inf", "cluster.heartbeat_timeout_s=inf must be finite"),
    ("soak.minutes=inf", "soak.minutes=inf must be finite"),
    ("optimization.learning_rate=-1", "optimization.learning_rate=-1.0 must be at least 0"),
    ("optimization.learning_rate=nan", "optimization.learning_rate=nan must be at least 0"),
    ("optimization.seed=-1", "optimization.seed=-1 must be from 0 to 4294967295"),
    ("soak.seed=4294967296", "soak.seed=4294967296 must be from 0 to 4294967295"),
]


def test_every_experiment_has_its_file():
    """conf/experiment/ and the code name the same ones."""
    files = {path.stem for path in (config_directory() / "experiment").glob("*.yaml")}
    assert files == set(EXPERIMENTS) | set(ON_REQUEST)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_composes(experiment, scale):
    """The configuration is complete, typed and valid."""
    config = load(experiment, [f"scale={scale}"])
    assert (config.experiment, config.scale) == (experiment, scale)
    assert config.out == f"results/default/{experiment}"


@pytest.mark.parametrize("group", ["model", "cluster", "checkpoint", "failure", "data"])
def test_every_choice_of_a_group_composes(group):
    """No file in conf/ is broken or forgotten."""
    choices = [path.stem for path in (config_directory() / group).glob("*.yaml")]
    assert choices
    for choice in choices:
        load("training", [f"{group}={choice}"])


@pytest.mark.parametrize(("override", "says"), IMPOSSIBLE)
def test_impossible_setting_is_refused(override, says):
    """One line that names the setting."""
    with pytest.raises(ConfigurationError) as caught:
        load("training", [override])
    message = str(caught.value)
    assert says in message
    assert "\n" not in message


def test_scaling_needs_a_place_for_every_replica():
    """Checked for all of its clusters before the first one starts."""
    with pytest.raises(ConfigurationError, match=r"scaling\.num_machines=2 must be at least 3"):
        load("scaling", ["cluster.replicas=3"])


def test_soak_refuses_a_job_of_which_nothing_would_be_left():
    """One copy of everything, and none on disk."""
    with pytest.raises(ConfigurationError, match="nothing survives agent_loss"):
        load("soak", ["cluster.replicas=1", "checkpoint.drain_every_commits=0"])


def test_throughput_needs_as_many_checkpoints_in_each_block():
    """Blocks without any would be counted as training with checkpoints."""
    with pytest.raises(ConfigurationError, match=r"block_steps=6 must be a multiple of .*every=25"):
        load("throughput", ["checkpoint=every_25_steps"])
    assert load("throughput", ["checkpoint=every_25_steps", "measure.block_steps=50"])


def test_recovery_from_a_peer_needs_a_replica():
    """Where there is none the training would begin anew."""
    with pytest.raises(ConfigurationError, match=r"recovery\.methods=ram_peer; set .*replicas=2"):
        load("recovery_time", ["cluster.replicas=1"])
    assert load("recovery_time", ["cluster.replicas=1", "recovery.methods=[ram_local]"])


def test_overrides_win_over_scale():
    """What the user says last counts."""
    config = load("training", ["scale=quick", "measure.steps=7", "model.layers=5"])
    assert (config.measure.steps, config.model.layers) == (7, 5)


@pytest.mark.parametrize("scale", SCALES)
def test_a_recovery_ends_with_the_smallest_step_of_the_scale_s_model(scale):
    """The state is that of other experiments; the step is short, unless the user says more."""
    recovery, other = (load(name, [f"scale={scale}"]) for name in ("recovery_time", "training"))
    assert recovery.model == other.model
    assert recovery.optimization.batch == 1 < other.optimization.batch
    said = load("recovery_time", [f"scale={scale}", "optimization.batch=3"])
    assert said.optimization.batch == 3


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_command_refuses_with_status_2_and_one_line(experiment, tmp_path):
    """No traceback, and nothing is started or written."""
    out = tmp_path / "out"
    done = run_experiment(experiment, "cluster.replicas=9", f"out={out}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cluster.replicas=9" in done.stderr
    assert not out.exists()


def test_command_refuses_an_unknown_key(tmp_path):
    """Hydra's own errors end the same way."""
    done = run_experiment("training", "bogus=1", f"out={tmp_path / 'out'}")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "bogus" in done.stderr


@pytest.mark.parametrize("arguments", [("--cfg=job", "days=7"), ("days=7", "--cfg", "job")])
def test_options_of_hydra_stand_before_or_after_settings(arguments):
    """Here the one that prints the configuration, and runs nothing."""
    done = run_experiment("wasted_time", *arguments)
    assert done.returncode == 0
    assert "days: 7.0" in done.stdout


def test_a_sweep_keeps_the_results_of_each_job(tmp_path):
    """Those that would go where the job before has put its own are refused."""
    out = tmp_path / "out"
    small = (
        "machines=[16]",
        "repeats=1",
        "correlated_percents=[10]",
        f"hydra.sweep.dir={tmp_path}",
    )
    done = run_experiment("wasted_time", "-m", "days=20,30", *small, f"out={out}")
    assert done.returncode == 2
    assert f"out={out} holds the job before" in done.stderr
    assert not out.exists()
    own = f"out={out}/${{goodput.days}}"
    assert run_experiment("wasted_time", "days=20,30", "-m", *small, own).returncode == 0
    assert {path.parent.name for path in out.glob("*/samples.csv")} == {"20.0", "30.0"}
    numbered = f"out={out}/${{hydra:job.num}}"
    assert run_experiment("wasted_time", "-m", "days=20,30", *small, numbered).returncode == 0
    assert (out / "1/samples.csv").exists()


@pytest.mark.parametrize("setting", ["days=20,-5", "days=20,many", "machines=[16],[1]", "dais=2,3"])
def test_a_sweep_with_one_impossible_job_starts_none(setting, tmp_path):
    """One line, as without a sweep; not after the jobs before have run."""
    places = (f"out={tmp_path}/${{goodput.days}}", f"hydra.sweep.dir={tmp_path}")
    done = run_experiment("wasted_time", "-m", setting, *places)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert setting.partition("=")[0] in done.stderr
    assert not list(tmp_path.iterdir())


def test_too_little_data_starts_nothing(tmp_path):
    """A file that exists but is too short is found before the ranks are started."""
    (tmp_path / "short").write_bytes(b"x" * 100)
    out = tmp_path / "out"
    done = run_experiment("training", f"data.path={tmp_path / 'short'}", f"out={out}")
    assert done.returncode != 0
    assert "100 bytes of training data" in done.stderr
    assert not out.exists()


def test_an_experiment_refused_leaves_the_results_before_it(tmp_path):
    """Whatever is wrong shows before they are deleted."""
    (tmp_path / "short").write_bytes(b"x" * 100)
    before = tmp_path / "out/samples.csv"
    before.parent.mkdir()
    before.touch()
    run_experiment("training", f"data.path={tmp_path / 'short'}", f"out={before.parent}")
    assert before.exists()


def test_a_place_that_cannot_be_written_starts_nothing(tmp_path):
    """One line, and not after everything has been measured."""
    (tmp_path / "file").touch()
    done = run_experiment("wasted_time", f"out={tmp_path / 'file/out'}")
    assert done.returncode == 1
    assert f"out={tmp_path / 'file/out'}: Not a directory" in done.stderr
    assert "Traceback" not in done.stderr
    assert "done" not in done.stderr


def run_experiment(experiment: str, *overrides: str) -> subprocess.CompletedProcess[str]:
    """Run an experiment's command from the root of the checkout."""
    return subprocess.run(
        [sys.executable, "-m", f"twinckpt.experiments.{experiment}", *overrides],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(config_directory()).parent,
        env={**os.environ, "HYDRA_FULL_ERROR": "0"},
        check=False,
    )


def test_an_experiments_own_settings_need_no_section(tmp_path):
    """As documented: `clusters=… faults=… seed=…`; the other experiments keep their own names."""
    out = tmp_path / "control_plane"
    short = ["clusters=2", "faults=3", "seed=5", "mutant_seeds=1", "repeats=1"]
    small = ["root_machines=[4]", "connections=[2]", "heartbeats=1000"]
    command = [sys.executable, "-m", "twinckpt.experiments.control_plane", f"out={out}"]
    subprocess.run([*command, *short, *small], check=True, timeout=120)
    samples = read_samples(out / "samples.csv")
    seeds = {sample.repeat for sample in samples if sample.metric == "violated"}
    assert seeds == {5, 6}
    assert {sample.machine for sample in samples if sample.metric == "plan_s"} == {4}


def test_each_method_of_recovery_time_can_be_chosen():
    assert [method.name for method in METHODS] == list(RECOVERY_METHODS)
