"""`twinckpt inspect`, `verify` and `export` on what a real FSDP2 job has drained."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp

from twinckpt.cli import main
from twinckpt.memory.drained import drained_steps, shard_path
from twinckpt.net.ports import free_port

SCRIPT = Path(__file__).parent / "scripts" / "sharded.py"
pytestmark = pytest.mark.cluster


def train(folder: Path, num_ranks: int) -> None:
    """Run the script, which resumes where the directory says."""
    options = [f"--nproc-per-node={num_ranks}", f"--master-port={free_port()}"]
    settings = {"DRAIN_DIRECTORY": str(folder / "drained"), "DRAIN_EVERY_COMMITS": "2"}
    env = {f"TWINCKPT_{name}": value for name, value in settings.items()}
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *options, str(SCRIPT), str(folder)],
        check=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )  # fmt: skip


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four ranks of an FSDP2 training that drained every step."""
    folder = tmp_path_factory.mktemp("job")
    train(folder, 4)
    return folder


def test_the_last_step_is_drained_though_it_is_not_due(job):
    """The second is due, the third is the last."""
    assert drained_steps(job / "drained") == (2, 3)


def test_an_intact_checkpoint_is_verified(job, capsys):
    """Every shard is named."""
    assert main(["verify", str(job / "drained")]) == 0
    assert "4 of 4 shards intact" in capsys.readouterr().out


def test_a_flipped_bit_is_found_and_named(job, capsys):
    """Which rank, which chunk; the exit status says so."""
    step = drained_steps(job / "drained")[0]
    path = shard_path(job / "drained", step, 2)
    right = path.read_bytes()
    path.write_bytes(right[:-1] + bytes([right[-1] ^ 1]))
    try:
        assert main(["verify", str(job / "drained"), "--step", str(step)]) == 1
        assert "shard of rank 2" in capsys.readouterr().out
        output = str(job / "damaged.pt")
        assert main(["export", str(job / "drained"), output, "--step", str(step)]) == 1
        assert "does not match its checksum" in capsys.readouterr().err
        assert not Path(output).exists()
    finally:
        path.write_bytes(right)


def test_inspect_lists_the_tensors_of_a_rank(job, capsys):
    """Names, types and shapes of the local shards: of 7 rows over 4 ranks rank 3 has one."""
    assert main(["inspect", str(job / "drained"), "--rank", "3"]) == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "model.0.weight" in x)
    assert line.split()[1:] == ["float32", "[1,", "5]", "20"]


def test_a_drained_shard_opens_with_plain_safetensors(job):
    """Without this library."""
    step = drained_steps(job / "drained")[-1]
    tensors = safetensors.torch.load_file(shard_path(job / "drained", step, 0))
    assert tensors["model.0.weight"].shape == (2, 5)


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_the_exported_state_equals_torchs_own_full_state(job, tmp_path, form, capsys):
    """Bit for bit, from shards of different sizes; what ranks do not share is said."""
    step = drained_steps(job / "drained")[-1]
    output = tmp_path / "exported"
    assert main(["export", str(job / "drained"), str(output), "--format", form]) == 0
    assert "progress: the ranks differ" in capsys.readouterr().out
    expected, _ = torch.load(job / f"full-{step}.pt", weights_only=False)
    if form == "torch":
        state = torch.load(output, weights_only=True)
        assert state["progress"] == {"step": step, "rank": 0}
        model = state["model"]
    else:
        model = {name: torch.zeros_like(tensor) for name, tensor in expected.items()}
        dcp.load({"model": model}, checkpoint_id=output, no_dist=True)
    assert model.keys() == expected.keys()
    assert all(torch.equal(model[name], tensor) for name, tensor in expected.items())


def assert_same(restored, expected):
    """Torch's own full states, of the model and of the optimizer, bit for bit."""
    assert all(torch.equal(restored[0][name], tensor) for name, tensor in expected[0].items())
    for name, moments in expected[1]["state"].items():
        for key, tensor in moments.items():
            assert torch.equal(restored[1]["state"][name][key], tensor)


@pytest.mark.parametrize("num_ranks", [1, 3, 6])
def test_another_number_of_ranks_resumes_the_same_state(job, num_ranks):
    """Parameters and optimizer state bit for bit; the rest comes from rank r modulo 4."""
    train(job, num_ranks)
    begun = torch.load(job / f"begun-{num_ranks}.pt", weights_only=False)
    assert begun["step"] > 0
    assert_same(begun["state"], torch.load(job / f"full-{begun['step']}.pt", weights_only=False))
    for rank in range(num_ranks):
        progress = (job / f"progress-{num_ranks}-{rank}").read_text()
        assert progress == str({"step": begun["step"], "rank": rank % 4})


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_an_imported_checkpoint_is_resumed_sharded(job, tmp_path, form):
    """What one file or a DCP checkpoint holds whole is cut for the ranks of an FSDP2 job."""
    step = drained_steps(job / "drained")[-1]
    whole, directory = str(tmp_path / "whole"), str(tmp_path / "drained")
    assert main(["export", str(job / "drained"), whole, "--format", form]) == 0
    assert main(["import", whole, directory, "--step", str(step)]) == 0
    assert main(["verify", directory]) == 0
    train(tmp_path, 3)
    begun = torch.load(tmp_path / "begun-3.pt", weights_only=False)
    assert begun["step"] == step
    assert_same(begun["state"], torch.load(job / f"full-{step}.pt", weights_only=False))


def test_what_is_no_checkpoint_is_not_imported(tmp_path, capsys):
    """One line says why, and nothing is written."""
    (tmp_path / "text").write_text("hello")
    torch.save([1, 2], tmp_path / "list")
    for name, why in (("none", "does not exist"), ("text", "no check"), ("list", "mapping")):
        status = main(["import", str(tmp_path / name), str(tmp_path / "out"), "--step", "1"])
        assert status in (1, 2)
        assert why in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_where_nothing_is_drained_one_line_says_so(tmp_path, capsys):
    """Exit status 2."""
    for command in (["verify"], ["inspect"], ["export"]):
        extra = [str(tmp_path / "out")] if command == ["export"] else []
        assert main([*command, str(tmp_path), *extra]) == 2
        assert "holds no complete checkpoint" in capsys.readouterr().err
