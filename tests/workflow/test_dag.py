"""Snakemake builds the whole graph at every scale, and refuses what it does not know."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from twinckpt.experiments.config import EXPERIMENTS

ROOT = Path(__file__).resolve().parents[2]
ALL = set(EXPERIMENTS)
# Experiments with a state of their own; all others depend on the workflow's model.
OWN_STATE = {"limits", "placement", "control_plane"}


def snakemake(
    *arguments: str, folder: Path = ROOT, mode: str = "--dry-run"
) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on a folder's Snakefile without running any rule's command."""
    command = [sys.executable, "-m", "snakemake", mode, "--nolock", "--cores", "2"]
    return subprocess.run(
        [*command, *arguments], cwd=folder, capture_output=True, text=True, timeout=120
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A copy of the workflow in which everything has been made at scale=quick."""
    folder = tmp_path_factory.mktemp("finished") / "checkout"
    folder.mkdir()
    shutil.copy2(ROOT / "Snakefile", folder)
    for name in ("workflow", "src", "notebooks"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "report").mkdir()
    for path in (ROOT / "report").glob("*.tex"):
        shutil.copy2(path, folder / "report")
    planned = snakemake("--config", "scale=quick", folder=folder)
    assert planned.returncode == 0, planned.stderr
    measured_files = ("samples.csv", "provenance.json", "config.yaml")
    outputs = [f"results/default/{name}/{file}" for name in ALL for file in measured_files]
    for line in re.findall(r"^ +output: (.+)$", planned.stdout, re.MULTILINE):
        outputs += line.split(", ")
    for output in outputs:
        (folder / output).parent.mkdir(parents=True, exist_ok=True)
        (folder / output).touch()
    touched = snakemake("--forceall", "--config", "scale=quick", folder=folder, mode="--touch")
    assert touched.returncode == 0, touched.stderr
    return folder


def measured(result: subprocess.CompletedProcess[str]) -> set[str]:
    """Return the experiments that a dry run would measure."""
    assert result.returncode == 0, result.stderr
    return set(re.findall(r"measuring (\w+) \(progress", result.stdout))


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ("", set()),
        ("measure.steps=97", {"training"}),
        ("measure.warmup=97", {"save_cost", "wasted_time", "limits"}),
        ("model.layers=97", ALL - OWN_STATE),
    ],
)
def test_an_override_measures_anew_what_it_touches_and_what_follows(finished, overrides, expected):
    """What a setting touches is tested in `test_settings`; `wasted_time` reads others' samples."""
    arguments = ["scale=quick", *([f"overrides={overrides}"] if overrides else [])]
    assert measured(snakemake("--config", *arguments, folder=finished)) == expected


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("results/samples.py", ALL),
        ("run.py", ALL),
        ("meeting.py", ALL),
        ("simulation/goodput.py", {"wasted_time", "control_plane"}),
        ("analysis/figures.py", set()),
    ],
)
def test_an_edited_module_measures_anew_what_runs_it(finished, module, expected):
    """Analysis runs in no experiment."""
    path = finished / "src/twinckpt" / module
    before, stat = path.read_text(), path.stat()
    path.write_text(before + "# edited\n")
    try:
        assert measured(snakemake("--config", "scale=quick", folder=finished)) == expected
    finally:
        path.write_text(before)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("scale", ["quick", "laptop", "full", "gpu1", "gpu4"])
def test_a_fresh_variant_runs_everything_once(scale):
    """Each experiment, and all that is made from them."""
    result = snakemake("--config", f"scale={scale}", "name=of_this_test")
    assert result.returncode == 0, result.stderr
    counts = {
        words[0]: int(words[1])
        for words in map(str.split, result.stdout.splitlines())
        if len(words) == 2 and words[1].isdigit()
    }
    each = dict.fromkeys(("measure", "figure", "notebook"), len(ALL))
    expected = {**each, "overview": 2, "summary": 1, "claims": 1, "report": 1}
    assert {name: counts.get(name) for name in expected} == expected


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("scales=quick", "--config knows scale, name, overrides, not scales"),
        ("scale=quack", "Could not find 'scale/quack'; Available options in 'scale':"),
        ("overrides=cluster.replicas=9", "cluster.replicas=9 is more than cluster.num_machines=4"),
    ],
)
def test_a_wrong_setting_ends_in_one_line(config, says):
    """Nothing is planned, and no traceback is shown."""
    result = snakemake("--config", config)
    assert result.returncode == 2
    (line,) = (line for line in result.stderr.splitlines() if line.startswith("twinckpt: "))
    assert says in line
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("name", ["scaling", "soak"])
def test_what_is_on_request_is_measured_by_its_name(name):
    """It is drawn as well; nothing else runs."""
    result = snakemake(name, "--config", "scale=quick", "name=of_this_test")
    assert measured(result) == {name}
    assert f"figures/{name}.pdf" in result.stdout


def test_peers_are_measured_by_name_only(tmp_path):
    """They need packages of their own, which the workflow installs first."""
    anew = ("--forcerun", "peers_packages")  # this checkout may have them
    result = snakemake("peers", *anew, "--config", "scale=quick", "name=of_this_test")
    assert result.returncode == 0, result.stderr
    assert measured(result) == {"peers"}
    assert "peers_packages" in result.stdout
