"""Snakemake builds the whole graph at every scale, and refuses what it does not know."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def snakemake(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run Snakemake on the repository's Snakefile without doing anything."""
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--nolock", "--cores", "2"]
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("scale", ["quick", "laptop", "gpu1", "gpu4"])
def test_a_fresh_variant_runs_everything_once(scale):
    """Four measurements, and all that is made from them."""
    result = snakemake("--config", f"scale={scale}", "name=of_this_test")
    assert result.returncode == 0, result.stderr
    counts = {
        words[0]: int(words[1])
        for words in map(str.split, result.stdout.splitlines())
        if len(words) == 2 and words[1].isdigit()
    }
    expected = {"measure": 4, "figure": 4, "notebook": 4, "summary": 1, "claims": 1, "report": 1}
    assert {name: counts.get(name) for name in expected} == expected


def test_an_unknown_setting_ends_in_one_line():
    """Nothing is planned."""
    result = snakemake("--config", "scales=quick")
    assert result.returncode != 0
    assert "--config knows scale, name, overrides, not scales" in result.stderr
