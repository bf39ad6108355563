"""Settings: keyword before dataclass before environment before default; all in one table."""

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest
from torch.distributed.elastic.rendezvous import RendezvousParameters

from twinckpt import Checkpointer, JobSettings
from twinckpt.agents.job_settings import LAUNCHED
from twinckpt.agents.rendezvous import create_handler
from twinckpt.checkpointer.connect import job_settings
from twinckpt.errors import ConfigurationError
from twinckpt.net.secret import load_secret

ROOT = Path(__file__).resolve().parents[2]
TABLE = ROOT / "docs" / "configuration.md"
SOURCES = ROOT / "src"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    """Nothing is set from outside."""
    for field in fields(JobSettings):
        monkeypatch.delenv(f"TWINCKPT_{field.name.upper()}", raising=False)
    monkeypatch.delenv(LAUNCHED, raising=False)


def test_the_documented_settings_are_those_that_exist_with_their_defaults():
    """Names and default of each row of the table, in any order."""
    rows = TABLE.read_text(encoding="utf-8").partition("| name |")[2].partition("\n\n")[0]
    documented = {
        name: default.strip(" `")
        for _, names, default, *_ in (row.split("|") for row in rows.splitlines()[2:])
        for name in re.findall(r"`(\w+)`", names)
    }
    defaults = {field.name: field.default for field in fields(JobSettings)}
    assert documented.keys() == defaults.keys()
    for name, default in defaults.items():
        assert type(default)(documented[name]) == default, name


def test_a_keyword_beats_the_dataclass_which_beats_the_environment(monkeypatch):
    """The dataclass is complete: the environment does not change what it leaves at a default."""
    monkeypatch.setenv("TWINCKPT_REPLICAS", "3")
    monkeypatch.setenv("TWINCKPT_NUM_SLOTS", "4")
    assert job_settings(None, {}) == JobSettings(replicas=3, num_slots=4)
    assert job_settings(None, {"replicas": 1}) == JobSettings(replicas=1, num_slots=4)
    assert job_settings(JobSettings(num_slots=5), {}) == JobSettings(num_slots=5)
    assert job_settings(JobSettings(num_slots=5), {"replicas": 1}) == JobSettings(1, num_slots=5)


@pytest.mark.parametrize(
    ("explicit", "message"),
    [
        ({"replica": 3}, r"replica=3: there is no such setting; is it replicas\?"),
        ({"replicas": "two"}, "replicas='two'"),
        ({"replicas": 2.5}, "replicas=2.5: a whole number"),
        ({"placement": "star"}, "placement='star': must be one of group, ring, mixed"),
        ({"drain_every_commits": -1}, "drain_every_commits=-1: 0 or more, and finite"),
        ({"heartbeat_timeout_s": "nan"}, "heartbeat_timeout_s=nan: 0 or more, and finite"),
        ({"heartbeat_interval_s": "0"}, "heartbeat_interval_s=0: it must be more than 0"),
        ({"drain_keep": 0}, "drain_keep=0: at least 1"),
        ({"metrics_port": 99999}, "metrics_port=99999: a port is at most 65535"),
        ({"host": "192.0.2.1"}, "host=192.0.2.1: .*name an address of this machine"),
    ],
)
def test_an_impossible_setting_is_refused_before_anything_starts(explicit, message):
    """With its name, its value and what would do."""
    with pytest.raises(ConfigurationError, match=message):
        Checkpointer({"step": 0}, **explicit)


def test_torchrun_is_told_in_one_line_what_is_wrong():
    """And not how torchrun came to it."""
    parameters = RendezvousParameters("twinckpt", "127.0.0.1:1", "job", 1, 1, replica="3")
    with pytest.raises(SystemExit, match=r"^twinckpt: replica='3': .*is it replicas\?"):
        create_handler(parameters)


def test_a_secret_that_is_too_short_is_told_before_any_agent_starts(monkeypatch):
    """The root agent would end with it, and torchrun wait half a minute for it."""
    monkeypatch.setenv("TWINCKPT_SECRET", "short")
    with pytest.raises(SystemExit, match=r"^twinckpt: the secret in TWINCKPT_SECRET has 5 bytes"):
        create_handler(RendezvousParameters("twinckpt", "127.0.0.1:1", "job", 1, 1))


def test_a_misspelt_variable_is_refused(monkeypatch):
    """Otherwise it would silently change nothing."""
    monkeypatch.setenv("TWINCKPT_REPLICA", "3")
    with pytest.raises(
        ConfigurationError, match=r"TWINCKPT_REPLICA='3': .*is it TWINCKPT_REPLICAS"
    ):
        JobSettings.load({})


def test_a_variable_of_ours_that_is_no_setting_is_not_taken_for_a_misspelt_one(monkeypatch):
    """All that the sources read."""
    settings = {f"TWINCKPT_{field.name.upper()}" for field in fields(JobSettings)}
    read = {
        name
        for path in SOURCES.rglob("*.py")
        for name in re.findall(r"TWINCKPT_[A-Z_]*[A-Z]", path.read_text(encoding="utf-8"))
    }
    assert len(read - settings) > 10
    for name in read - settings:
        monkeypatch.setenv(name, "x")
    assert JobSettings.load({}) == JobSettings()


def test_a_secret_that_cannot_be_made_is_said(monkeypatch):
    """There is no home directory to keep it in."""
    monkeypatch.delenv("TWINCKPT_SECRET", raising=False)
    monkeypatch.delenv("TWINCKPT_SECRET_FILE", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", "/proc/nowhere")
    with pytest.raises(ConfigurationError, match="set TWINCKPT_SECRET, or name a file"):
        load_secret()


def test_a_secret_is_made_beside_what_another_process_of_this_number_has_begun(
    monkeypatch, tmp_path
):
    """On another machine that shares the home directory: in containers both may be process 7."""
    for name in ("TWINCKPT_SECRET", "TWINCKPT_SECRET_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "twinckpt").mkdir()
    (tmp_path / "twinckpt" / f".secret.{os.getpid()}").touch()
    assert load_secret() == load_secret()


def test_a_secret_is_not_written_where_a_user_without_home_happens_to_be(monkeypatch, tmp_path):
    """Launchers in other directories would have other secrets."""
    for name in ("TWINCKPT_SECRET", "TWINCKPT_SECRET_FILE", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", "~")
    with pytest.raises(ConfigurationError, match="no home directory: set TWINCKPT_SECRET"):
        load_secret()
    assert list(tmp_path.iterdir()) == []


def test_what_is_not_in_utf_8_is_refused(monkeypatch):
    """Agents are told their settings as text."""
    monkeypatch.setenv("TWINCKPT_DRAIN_DIRECTORY", os.fsdecode(b"/shared/\xff"))
    with pytest.raises(ConfigurationError, match=r"drain_directory=.*not in UTF-8"):
        JobSettings.load({})


def test_what_torchrun_has_decided_can_only_be_repeated(monkeypatch):
    """Its agents run already."""
    monkeypatch.setenv(LAUNCHED, JobSettings(replicas=3, drain_keep=1).to_json())
    assert job_settings(None, {"replicas": 3}) == JobSettings(replicas=3, drain_keep=1)
    with pytest.raises(ConfigurationError, match=r"replicas=2 .*--rdzv-conf replicas=2"):
        job_settings(None, {"replicas": 2})
    with pytest.raises(ConfigurationError, match="drain_keep=1"):
        job_settings(JobSettings(replicas=3), {})
