"""DTensors come back placed as they were, or are refused by name: on two real ranks."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import pytest
import torch
import torch.distributed as dist
from catalogue import restored, slot_of
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

from twinckpt.errors import RestoreError

PLACEMENTS = {"rows": Shard(0), "columns": Shard(1), "whole": Replicate(), "unsummed": Partial()}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """Two processes, which are the ranks of one job."""
    store = tmp_path_factory.mktemp("store") / "store"
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as first, ProcessPoolExecutor(1, context) as second:
        yield lambda call: [
            found.result(timeout=120)
            for found in [
                pool.submit(_on_rank, str(store), rank, call)
                for rank, pool in enumerate((first, second))
            ]
        ]


def _on_rank(store, rank, call):
    if not dist.is_initialized():
        dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    return call(init_device_mesh("cpu", (2,)))


def _placed(mesh, name):
    """Part of a tensor of four rows and columns: of this rank, and with values of its own."""
    shape = {"rows": (2, 4), "columns": (4, 2)}.get(name, (4, 4))
    return DTensor.from_local(torch.rand(shape), mesh, [PLACEMENTS[name]], run_check=False)


def _into_another(saved, live, mesh):
    """What comes of a tensor that is placed otherwise in the new process."""
    tensor = _placed(mesh, saved)
    fresh = torch.zeros_like(tensor.to_local()) if live == "plain" else _placed(mesh, live)
    state = {"x": {"t": fresh}}
    try:
        restored(slot_of({"x": {"t": tensor}}), state)
    except RestoreError as error:
        return str(error)
    found = state["x"]["t"]
    is_same = torch.equal(getattr(found, "_local_tensor", found), tensor.to_local())
    return is_same, str(getattr(found, "placements", "plain"))


@pytest.mark.parametrize("placement", PLACEMENTS)
def test_a_tensor_keeps_its_placement(ranks, placement):
    found = ranks(partial(_into_another, placement, placement))
    assert found == [(True, str((PLACEMENTS[placement],)))] * 2


@pytest.mark.parametrize(
    ("saved", "live"), [("unsummed", "whole"), ("unsummed", "plain"), ("rows", "plain")]
)
def test_a_part_is_not_taken_for_the_whole(ranks, saved, live):
    """Both have the same shape on each rank: a part yet to be summed used to return as the sum."""
    assert all(
        "x.t is a DTensor, placed" in found for found in ranks(partial(_into_another, saved, live))
    )


def test_the_whole_is_not_taken_for_a_part(ranks):
    """It used to come back as a part yet to be summed: twice its value."""
    assert ranks(partial(_into_another, "whole", "unsummed")) == [(True, "plain")] * 2


class Holding:
    """Has its state from what it holds, as an object that wraps a model."""

    def __init__(self, tensor):
        self.tensor = tensor

    def state_dict(self):
        return {"tensor": self.tensor}

    def load_state_dict(self, state):
        self.tensor = state["tensor"]


def _into_an_object(mesh):
    saved, fresh = (Holding(torch.nn.Parameter(_placed(mesh, "rows"))) for _ in range(2))
    restored(slot_of({"x": saved}), {"x": fresh})
    found, tensor = fresh.tensor, saved.tensor
    is_same = torch.equal(found.to_local(), tensor.to_local())
    return is_same, found.placements == tensor.placements, type(found) is type(tensor)


def test_an_object_of_the_loops_own_gets_a_tensor_placed_as_it_was(ranks):
    """It used to be refused: the state that the object gave was not looked at."""
    assert ranks(_into_an_object) == [(True, True, True)] * 2


def _into_a_new_optimizer(mesh):
    """Of a sharded parameter, whose state is not all sharded."""
    saved, fresh = (
        torch.optim.SGD([torch.nn.Parameter(_placed(mesh, "rows"))], lr=0.1) for _ in range(2)
    )
    state = {"mean": _placed(mesh, "whole"), "momentum": _placed(mesh, "rows")}
    state["row"] = DTensor.from_local(torch.rand(4, 1), mesh, [Replicate()], run_check=False)
    saved.state[saved.param_groups[0]["params"][0]] = state
    restored(slot_of({"optimizer": saved}), {"optimizer": fresh})
    (found,) = fresh.state.values()
    return [
        (
            torch.equal(found[key].to_local(), tensor.to_local()),
            found[key].shape == tensor.shape,
            found[key].placements == tensor.placements,
        )
        for key, tensor in state.items()
    ]


def test_state_that_is_not_sharded_as_its_parameter_is_made_as_it_was(ranks):
    """As a mean of each row: it used to be made a shard of the parameter's shape."""
    assert ranks(_into_a_new_optimizer) == [[(True, True, True)] * 3] * 2


class Training:
    """Keeps a sharded parameter and its optimizer, whose state is there after the first step."""

    def __init__(self, parameter, is_stepped):
        self.parameter = parameter
        self.optimizer = torch.optim.Adam([parameter])
        if is_stepped:
            parameter.grad = parameter.detach().clone()
            self.optimizer.step()

    def state_dict(self):
        return {"model": {"weight": self.parameter}, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state):
        self.parameter.data = state["model"]["weight"].data
        self.optimizer.load_state_dict(state["optimizer"])


def _into_a_new_training(has_other_mesh, mesh):
    saved, fresh = (
        Training(torch.nn.Parameter(_placed(mesh, "rows")), is_stepped) for is_stepped in (1, 0)
    )
    # Another mesh of two: the same ranks the other way round.
    others = [_placed(DeviceMesh("cpu", [1, 0]), "rows")] if has_other_mesh else []
    slot = slot_of({"training": saved, "others": {"others": others}})
    try:
        restored(slot, {"training": fresh, "others": {"others": others}})
    except RestoreError as error:
        return str(error)
    (was,), (found,) = saved.optimizer.state.values(), fresh.optimizer.state.values()
    return [
        (torch.equal(found[key].to_local(), was[key].to_local()), found[key].placements)
        for key in ("exp_avg", "exp_avg_sq")
    ]


def test_the_state_of_an_optimizer_within_an_object_is_placed_as_its_parameter(ranks):
    """It was refused in every new process: an optimizer has no state before its first step."""
    found = ranks(partial(_into_a_new_training, False))
    assert found == [[(True, (PLACEMENTS["rows"],))] * 2] * 2


def test_where_two_meshes_have_one_shape_neither_is_taken(ranks):
    found = ranks(partial(_into_a_new_training, True))
    assert all("training.optimizer.state.0.exp_avg is a DTensor" in reason for reason in found)
