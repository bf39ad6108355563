"""Provenance says where a result comes from, also where something is missing."""

import subprocess
from pathlib import Path

import pytest

from twinckpt.results import provenance


def test_collects_what_a_reader_needs() -> None:
    """Hardware, versions, configuration with digest, seeds, and what the caller adds."""
    found = provenance.collect({"steps": 3}, seeds=[1, 2], extra={"page_cache_dropped": False})
    assert found["config"] == {"steps": 3}
    assert found["seeds"] == [1, 2]
    assert found["page_cache_dropped"] is False
    assert found["hardware"]["num_cores"] >= 1
    assert found["hardware"]["memory_bytes"] > 0
    assert found["packages"]["numpy"]
    assert {"commit", "dirty"} == found["git"].keys()


def test_digest_does_not_depend_on_the_order_of_keys() -> None:
    """The same configuration has the same digest; another one has another."""
    digest = provenance.config_sha256({"a": 1, "b": {"c": 2, "d": 3}})
    assert digest == provenance.config_sha256({"b": {"d": 3, "c": 2}, "a": 1})
    assert digest != provenance.config_sha256({"a": 1, "b": {"c": 2, "d": 4}})


def test_git_state_tells_clean_from_dirty(tmp_path: Path) -> None:
    """The commit is found; a changed tracked file makes it dirty, an untracked one does not."""

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=t", "-c", "user.email=t@localhost"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True)

    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("-c", "core.hooksPath=/dev/null", "commit", "-qm", "one")
    (tmp_path / "untracked").write_text("x")
    clean = provenance.git_state(tmp_path)
    assert clean["dirty"] is False
    assert len(clean["commit"]) == 40
    (tmp_path / "file").write_text("two")
    assert provenance.git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}


def test_no_git_and_no_gpu_are_not_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without git and nvidia-smi the fields say so."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert provenance.git_state() == {"commit": None, "dirty": None}
    assert provenance.gpu_names() == []


def test_written_provenance_is_read_back(tmp_path: Path) -> None:
    """A file that is no provenance is refused by name."""
    path = tmp_path / "provenance.json"
    provenance.write_provenance(path, {"seeds": [1]})
    assert provenance.read_provenance(path) == {"seeds": [1]}
    path.write_text("[]")
    with pytest.raises(ValueError, match=r"provenance\.json"):
        provenance.read_provenance(path)
