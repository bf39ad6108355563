"""Without the rendezvous backend: any torchrun, or no launcher at all."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from twinckpt import Checkpointer
from twinckpt.net.ports import free_port

SCRIPT = Path(__file__).parent / "scripts" / "plain.py"
TIMEOUT_S = 180
# Otherwise gloo meets addresses of dead ranks in torchrun's own store, and waits (torch 2.13):
# see docs/recipes.md.
OWN_STORE = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


def torchrun(
    folder: Path, *options: str, script: Path = SCRIPT, **env: str
) -> subprocess.Popen[str]:
    """Start a torchrun of a script."""
    command = [sys.executable, "-m", "torch.distributed.run", "--max-restarts=3", *options]
    return subprocess.Popen(
        [*command, str(script), str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", **env},
    )


def finish(*launchers: subprocess.Popen[str]) -> None:
    """Wait for all of them; show the output of one that failed."""
    for launcher in launchers:
        try:
            output, _ = launcher.communicate(timeout=TIMEOUT_S)
        finally:
            launcher.kill()
        assert launcher.returncode == 0, output


def expected(rank: int) -> dict[str, torch.Tensor]:
    """What the script ends with where nothing is killed, computed here."""
    torch.manual_seed(rank)
    model = torch.nn.Linear(8, 8)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(12):
        torch.manual_seed(1000 * rank + step)
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()
    return model.state_dict()


def assert_recovered(folder: Path, world_size: int, source: str) -> None:
    """Every rank began anew once, from the newest step, and ended as if nothing had happened."""
    for rank in range(world_size):
        begun = (folder / f"restored-{rank}").read_text().splitlines()
        assert begun[0] == "0 None"
        assert begun[1:] == [f"6 {source}"]
        end = torch.load(folder / f"end-{rank}.pt", weights_only=True)
        assert end["progress"] == {"samples": 48}
        for name, tensor in expected(rank).items():
            assert torch.equal(end["model"][name], tensor)


@pytest.mark.cluster
def test_ranks_of_one_machine_survive_under_plain_torchrun(tmp_path: Path) -> None:
    """The agent outlives the ranks that torchrun restarts."""
    finish(torchrun(tmp_path, "--standalone", "--nproc-per-node=2", **OWN_STORE))
    assert_recovered(tmp_path, 2, "local")


@pytest.mark.cluster
def test_two_machines_find_each_other_under_any_rendezvous(tmp_path: Path) -> None:
    """torchrun's own c10d rendezvous; each machine's first rank starts its agent."""
    endpoint = f"127.0.0.1:{free_port()}"
    options = ("--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", "--rdzv-id=plain")
    options += (f"--rdzv-endpoint={endpoint}",)
    finish(*(torchrun(tmp_path, *options, **OWN_STORE) for _ in range(2)))
    assert_recovered(tmp_path, 2, "local")


@pytest.mark.cluster
def test_every_kind_of_state_survives_a_kill_at_a_random_moment(tmp_path: Path) -> None:
    """All of the catalogue in one checkpoint, saved as fast as it goes."""
    script = SCRIPT.with_name("carry_catalogue.py")
    options = ("--standalone", "--nproc-per-node=2")
    finish(torchrun(tmp_path, *options, script=script, **OWN_STORE))
    steps = {(tmp_path / f"restored-{rank}").read_text() for rank in range(2)}
    assert len(steps) == 1


def test_several_ranks_without_a_process_group_are_told_what_to_do(monkeypatch) -> None:
    """Without a group they cannot find each other."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="init_process_group"):
        Checkpointer({"weight": torch.zeros(2)})


def test_a_second_checkpointer_of_a_process_finds_the_state_of_the_first() -> None:
    """The process's agent keeps it."""
    with Checkpointer({"weight": torch.arange(5.0)}) as first:
        first.save(3, block=True)
    weight = torch.zeros(5)
    with Checkpointer({"weight": weight}) as second:
        assert second.restore() == 3
    assert torch.equal(weight, torch.arange(5.0))
