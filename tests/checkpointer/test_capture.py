"""A state captured again and again: what stays is not looked at anew, what changes is noticed."""

import math
from collections.abc import Callable

import pytest
import torch

from twinckpt.checkpointer.capture import Capture


def conjugate(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.conj()


def widen(tensor: torch.Tensor) -> None:
    tensor.data = tensor.data.to(torch.complex128)


def shrink(tensor: torch.Tensor) -> None:
    tensor.resize_(2, 3)


def transpose(tensor: torch.Tensor) -> None:
    tensor.t_()


def move(tensor: torch.Tensor) -> None:
    tensor.set_(tensor.clone())


def freeze(tensor: torch.Tensor) -> None:
    tensor.requires_grad_()


@pytest.mark.parametrize("change", [conjugate, widen, shrink, transpose, move, freeze])
def test_a_tensor_that_changes_while_it_stays_the_same_object(
    change: Callable[[torch.Tensor], None],
) -> None:
    """Its new shape, type, place or way to lie in memory is what the next capture says."""
    tensor = torch.randn(3, 3, dtype=torch.complex64)
    state = {"part": {"nested": [tensor, 1.5]}}
    capture = Capture()
    first = capture(state)
    with torch.no_grad():
        change(tensor)
    again, fresh = capture(state), Capture()(state)
    assert again is not first
    assert (again.text, again.kinds, again.places) == (fresh.text, fresh.kinds, fresh.places)


def test_a_result_that_becomes_a_leaf_is_noticed() -> None:
    """As a hidden state between two pieces of a sequence: it used to return without gradients."""
    hidden = torch.randn(3, requires_grad=True) * 2
    state = {"part": {"hidden": hidden}}
    capture = Capture()
    capture(state)
    hidden.detach_().requires_grad_()
    assert capture(state).text == Capture()(state).text


def test_contents_do_not_matter() -> None:
    """A step that only writes into the tensors leaves the captured structure as it is."""
    weight = torch.nn.Parameter(torch.randn(3))
    state = {"model": {"weight": weight, "norms": [1.0, 2.0]}, "step": 3}
    capture = Capture()
    first = capture(state)
    with torch.no_grad():
        weight.add_(1)
    assert capture(state) is first
    state["step"] = 4
    assert capture(state) is not first


def test_a_nan_that_becomes_another_one_is_noticed() -> None:
    """Its text is the same, its bits are not."""
    state = {"part": {"value": math.nan}}
    capture = Capture()
    first = capture(state)
    state["part"]["value"] = -math.nan
    assert capture(state).text != first.text


@pytest.mark.parametrize("path", [("progress",), ("model", "bias"), ("model", "norms")])
def test_what_is_gone_is_gone(path: tuple[str, ...]) -> None:
    """Even if nothing else changes."""
    shared = torch.randn(3)
    state = {
        "progress": {"weight": shared},
        "model": {"bias": shared, "norms": [1.0], "weight": torch.randn(2)},
    }
    capture = Capture()
    capture(state)
    container = state
    for key in path[:-1]:
        container = container[key]
    del container[path[-1]]
    again, fresh = capture(state), Capture()(state)
    assert (again.text, again.kinds, again.places) == (fresh.text, fresh.kinds, fresh.places)


def test_values_that_move_from_one_container_into_another_are_noticed() -> None:
    """With the same values in the same order, the older structure used to be saved again."""
    state = {"log": ["s", [{}, "a", {"b": 1}, 2]]}
    capture = Capture()
    capture(state)
    state["log"][1] = [{"a": {}}, "b", 1, 2]
    assert capture(state).text == Capture()(state).text
