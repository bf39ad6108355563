"""Live memory that a restore fills: none of it twice, with different bytes.

What is one memory now may have been saved as two tensors. `best = model.state_dict()` is the
weights themselves until better ones are copied; an observation that is a row of the replay buffer
is another row in a process that has just begun.
"""

from typing import Any, NamedTuple

import numpy as np
import torch

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.reading import SavedTensors
from twinckpt.errors import RestoreError


class _Taken(NamedTuple):
    """A live tensor, the name of what fills it, its first address and the one after its last."""

    tensor: torch.Tensor
    name: str
    start: int
    end: int


class LiveMemory:
    """Which saved tensor fills which live memory."""

    def __init__(self, saved: SavedTensors) -> None:
        self._saved = saved
        self._places: dict[tuple[Any, ...], str] = {}
        self._taken: dict[int, list[_Taken]] = {}
        self._arrays: dict[int, str] = {}

    def take(self, target: torch.Tensor, name: str, is_of_module: bool) -> bool:
        """Return whether a saved tensor may fill a live one: nothing else fills its memory.

        A module's are filled in any case: its optimizer knows no others. Raises RestoreError if
        the memory is read-only, or two tensors of modules that were apart are one here.
        """
        if not target.numel():
            return True
        place = target.device, target.data_ptr(), target.dtype, target.shape, target.stride()
        if place in self._places:
            former = self._places[place]
            if is_of_module and not self._are_alike(former, name):
                raise RestoreError(
                    f"{former} and {name} are one tensor here, and were two with different values "
                    "when they were saved. Nothing is overwritten: untie them before restore()"
                )
            return former == name or is_of_module
        storage = target.untyped_storage()
        # What torch has allocated can be written to, and resized.
        is_foreign = target.is_cpu and not storage.resizable()
        if is_foreign and not moving.is_writable(target.data_ptr()):
            raise RestoreError(
                f"{name} is to be restored into memory that is read-only, as that of a file mapped "
                "to be read; make it a copy (tensor.clone()), or leave it out of the state"
            )
        taken = _Taken(target, name, *_span(target))
        others = self._taken.setdefault(storage.data_ptr(), [])
        if not is_of_module and not all(self._agree(other, taken) for other in others):
            return False
        self._places[place] = name
        others.append(taken)
        return True

    def take_array(self, target: np.ndarray, name: str) -> bool:
        """Return whether a saved array may fill a live one: nothing else has its memory.

        Not one whose memory is a tensor's, or a part of another array's.
        """
        owner = target if target.base is None or not target.flags.forc else target.base
        if type(owner) is not np.ndarray or not owner.flags.owndata:
            return False
        return owner.nbytes == target.nbytes and self._arrays.setdefault(id(owner), name) == name

    def _are_alike(self, first: str, second: str) -> bool:
        return first == second or moving.same_bits(
            self._saved.tensor(first), self._saved.tensor(second)
        )

    def _agree(self, first: _Taken, second: _Taken) -> bool:
        """Return whether two saved tensors have the same bytes where the live ones share memory."""
        start, end = max(first.start, second.start), min(first.end, second.end)
        if end <= start:
            return True
        if first.tensor.is_contiguous() and second.tensor.is_contiguous():
            shared = (
                moving.bits(self._saved.tensor(taken.name))[start - taken.start : end - taken.start]
                for taken in (first, second)
            )
            return torch.equal(*shared)
        memory = first.tensor.untyped_storage().clone()
        read = _in(memory, second.tensor)
        moving.copy(read, self._saved.tensor(second.name))
        moving.copy(_in(memory, first.tensor), self._saved.tensor(first.name))
        return moving.same_bits(read, self._saved.tensor(second.name))


def _span(tensor: torch.Tensor) -> tuple[int, int]:
    """Return the first address of a tensor that is not empty, and the one after its last."""
    start = tensor.data_ptr()
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def _in(memory: torch.UntypedStorage, tensor: torch.Tensor) -> torch.Tensor:
    """Return what a tensor would be in another memory."""
    view = torch.empty(0, dtype=tensor.dtype, device=tensor.device)
    return view.set_(memory, tensor.storage_offset(), tensor.shape, tensor.stride())
