"""What `--config` may say, and that a setting touches exactly the experiments that use it."""

import shlex
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "workflow"))
from settings import EXPERIMENTS, Settings  # noqa: E402


def touched(override: str) -> set[str]:
    """Return the experiments whose results depend on a setting."""
    before, after = Settings({}), Settings({"overrides": override})
    return {name for name in EXPERIMENTS if before.digest(name) != after.digest(name)}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("failure.repeats=5", {"recovery_time"}),
        ("recovery.methods=[disk]", {"recovery_time"}),
        ("measure.blocks=3", {"throughput"}),
        ("measure.repeats=5", {"save_cost", "limits"}),
        ("measure.warmup=97", {"save_cost", "limits"}),
        ("measure.steps=33", {"training"}),
        ("goodput.repeats=9", {"wasted_time"}),
        ("goodput.days=97", {"wasted_time"}),
        ("limits.num_tensors=97", {"limits"}),
        ("placement.num_samples=97", {"placement"}),
        ("control_plane.faults=97", {"control_plane"}),
        ("interleaving.iterations=97", {"interleaving"}),
        ("checkpoint.every=3", {"recovery_time", "throughput", "training"}),
        ("checkpoint.drain_every_commits=9", {"training"}),
        (
            "model.layers=3",
            set(EXPERIMENTS) - {"wasted_time", "limits", "placement", "control_plane"},
        ),
        ("cluster=two_machines", set(EXPERIMENTS) - {"placement", "interleaving", "control_plane"}),
        ("model.layers=6", set()),
    ],
)
def test_a_setting_touches_exactly_what_uses_it(override, expected):
    """The last one is the default's own value: nothing changes."""
    assert touched(override) == expected


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"scael": "quick"}, "not scael"),
        ({"name": "../elsewhere"}, "name=../elsewhere"),
        ({"name": "über"}, "name=über: ASCII letters"),
        ({"name": "-x"}, "a letter or digit first"),
        ({"name": None}, "name=: ASCII letters"),
        ({"name": 1.1}, "name=1.1: Snakemake reads a number"),
        ({"name": "recorded"}, "other machines' results"),
        ({"overrides": "out=/tmp/x"}, "cannot set out"),
        ({"overrides": "+scale=quick"}, "--config scale=SCALE"),
    ],
)
def test_wrong_settings_stop_before_anything_starts(config, says, capsys):
    """One line that says what is known."""
    with pytest.raises(SystemExit) as stopped:
        Settings(config)
    assert stopped.value.code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("override", ["model.layer=6", "cluster.replicas=9", "model.heads=7"])
def test_impossible_overrides_stop_too(override, capsys):
    """The message is the experiment's own."""
    with pytest.raises(SystemExit):
        Settings({"overrides": override}).digest("save_cost")
    assert override.split("=")[0].split(".")[-1] in capsys.readouterr().err


def test_an_edited_text_is_trained_on_anew_by_what_trains_on_it(tmp_path):
    """Its content is no setting: Snakemake compares the file."""
    text = tmp_path / "text.txt"
    text.write_text("to be or not to be")
    settings = Settings({"overrides": f"data.path={text}"})
    assert settings.files("training") == [str(text)]
    assert settings.files("wasted_time") == Settings({}).files("training") == []


def test_a_variant_keeps_its_results_beside_the_default_ones():
    """And says its name in every sample."""
    settings = Settings({"name": "deep"})
    assert settings.results == Path("results/deep")
    assert "variant=deep" in settings.arguments


def test_no_overrides_are_none():
    """As `overrides=$UNSET` has it, which Snakemake reads as None."""
    assert Settings({"overrides": None}).overrides == Settings({}).overrides


def test_arguments_survive_the_shell():
    """A path with a space or a quote is one word; Snakemake takes quotes around all of them off."""
    words = ["data.path=/a b/it's", "model.layers=2"]
    settings = Settings({"overrides": " ".join(words)})
    assert shlex.split(settings.arguments)[-2:] == words
