"""NumPy's arrays, as of random numbers, in what is exported: `torch.load` needs no trust in it."""

import numpy as np
import torch

from twinckpt import RngState
from twinckpt.cli.export import without_arrays


def test_a_state_with_arrays_loads_without_pickles_and_is_the_same(tmp_path):
    state = {
        "rng": RngState().state_dict(),
        "plain": {
            "array": np.arange(3),
            "list": [np.ones(2)],
            "swapped": np.arange(3, dtype=">i4"),
            "loss": np.float32(0.5),
            "is_best": np.bool_(True),
        },
    }
    expected = np.random.rand()
    torch.save(without_arrays(state), tmp_path / "exported.pt")
    found = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert found["plain"]["array"].tolist() == [0, 1, 2]
    assert found["plain"]["swapped"].tolist() == [0, 1, 2]
    assert (found["plain"]["loss"], found["plain"]["is_best"]) == (0.5, True)
    assert found["plain"]["list"][0].tolist() == [1, 1]
    RngState().load_state_dict(found["rng"])
    assert np.random.rand() == expected


def test_empty_arrays_of_two_types_are_exported_beside_each_other(tmp_path):
    """Restored ones are at one address, as if they were two types of one memory: torch refused."""
    state = {name: np.ndarray(0, name, bytearray()) for name in ("i4", "f8")}
    torch.save(without_arrays(state), tmp_path / "exported.pt")
    found = torch.load(tmp_path / "exported.pt", weights_only=True)
    assert [tensor.dtype for tensor in found.values()] == [torch.int32, torch.float64]
