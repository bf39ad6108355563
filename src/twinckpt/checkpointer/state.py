"""What is checkpointed: a mapping of names to stateful objects, tensors and plain values.

`capture` reads all of it; `restore` writes it back in place: a live tensor of the same type
and shape receives the bytes, whatever else is handed to `load_state_dict`.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, MutableMapping
from typing import Any

import torch
from torch.distributed.tensor import DTensor

from twinckpt.checkpointer import containers, optimizers, rng
from twinckpt.checkpointer.capture import Capture
from twinckpt.checkpointer.in_place import InPlace, Made, precedence
from twinckpt.checkpointer.live_memory import LiveMemory
from twinckpt.checkpointer.loading import has_extra_state, loads_as_usual, misfit
from twinckpt.checkpointer.parts import Parts, is_stateful
from twinckpt.checkpointer.placing import Placed
from twinckpt.checkpointer.reading import SavedTensors
from twinckpt.checkpointer.tree import FlatState
from twinckpt.checkpointer.unflatten import unflatten
from twinckpt.checkpointer.zero import is_zero, load_local_state, local_state
from twinckpt.errors import RestoreError, TwinckptError, UnsupportedStateError

logger = logging.getLogger(__name__)


class TrainingState:
    """The user's mapping, with what the library must know of its parts."""

    def __init__(self, parts: MutableMapping[str, Any]) -> None:
        self._parts = Parts(parts)
        for name, part in self._parts.items():
            if isinstance(part, dict) and part.keys() == {"state", "param_groups"}:
                logger.warning(
                    "%s is what an optimizer's state_dict() returned, which its steps do not "
                    "change and a restore does not load: give the optimizer itself",
                    name,
                )
        self._capture = Capture()
        self._steady: tuple[set[str], frozenset[str]] | None = None
        self._distrusted: set[str] = set()

    @property
    def optimizers(self) -> list[torch.optim.Optimizer]:
        """The optimizers: between their steps, what they own and update does not change."""
        parts = (part for _, part in self._parts.items())
        found = [part for part in parts if isinstance(part, torch.optim.Optimizer)]
        return [optimizers.unwrapped(part) for part in found]

    @property
    def gpu(self) -> torch.device | None:
        """The GPU that modules and optimizers are on, the first of several; None without any."""
        for _, part in self._parts.items():
            tensors: Iterable[torch.Tensor] = ()
            if isinstance(part, torch.nn.Module):
                tensors = part.parameters()
            elif isinstance(part, torch.optim.Optimizer):
                tensors = optimizers.owned(part)
            for tensor in tensors:
                if tensor.is_cuda:
                    return tensor.device
        return None

    @torch.no_grad()
    def capture(self) -> FlatState:
        """Return all tensors and plain values as they are now; nothing is copied yet.

        Raises UnsupportedStateError for what cannot be carried, by name.
        """
        return self._capture({name: _state_of(name, part) for name, part in self._parts.items()})

    @torch.no_grad()
    def capture_of_torch(self) -> FlatState:
        """Return what modules, optimizers and tensors hold: nearly all of most states.

        Other objects are not asked: a data loader may begin to load.
        """
        kinds = torch.nn.Module | torch.optim.Optimizer | torch.Tensor
        parts = {name: part for name, part in self._parts.items() if isinstance(part, kinds)}
        return Capture()({name: _state_of(name, part) for name, part in parts.items()})

    def steady_names(self, tensors: Mapping[str, torch.Tensor]) -> frozenset[str]:
        """Return the names of the tensors that change only inside `optimizer.step()`.

        Those are the optimizers' state, and of the modules' parameters those that an optimizer
        owns, and those that are frozen. A target network is neither: whoever moves it may leave no
        trace in the version counters. Without an optimizer there are none.
        """
        if self._steady is None or self._steady[0] != tensors.keys():
            self._steady = (set(tensors), self._find_steady_names(tensors))
        return self._steady[1]

    def _find_steady_names(self, tensors: Mapping[str, torch.Tensor]) -> frozenset[str]:
        if not self.optimizers:
            return frozenset()
        owned = {id(parameter) for one in self.optimizers for parameter in optimizers.owned(one)}
        found: set[str] = set()
        for name, part in self._parts.items():
            if isinstance(part, torch.optim.Optimizer):
                found.update(key for key in tensors if key.startswith(f"{name}.state."))
            elif isinstance(part, torch.nn.Module):
                found.update(
                    f"{name}.{key}"
                    for key, parameter in part.named_parameters(remove_duplicate=False)
                    if id(parameter) in owned or not parameter.requires_grad
                )
        # A tensor made for inference has no version counter to tell whether it changes.
        found.difference_update(n for n, tensor in tensors.items() if tensor.is_inference())
        return frozenset((found & tensors.keys()) - self._distrusted)

    def distrust(self, names: Iterable[str]) -> bool:
        """Count these tensors as steady no more; return whether any did until now."""
        new = set(names) - self._distrusted
        self._distrusted |= new
        self._steady = None
        return bool(new)

    def counterparts(self) -> Callable[[str], torch.Tensor | None]:
        """Return a function from name to live tensor; for optimizer state to come, to parameter."""
        live = self.capture().originals
        parts = self._parts.items()

        def counterpart(name: str) -> torch.Tensor | None:
            if name in live:
                return live[name]
            owners = (optimizers.owner(name, part_name, part) for part_name, part in parts)
            return next((owner for owner in owners if owner is not None), None)

        return counterpart

    def restore(self, json: dict[str, Any], saved: SavedTensors) -> None:
        """Write a captured state back into the user's objects.

        Raises RestoreError if the checkpoint is of other parts than these, or holds what no
        checkpoint of this library does.
        """
        parts = dict(self._parts.items())
        missing = sorted(parts.keys() ^ json.keys())
        if missing:
            raise RestoreError(
                f"the checkpoint and the state differ in {', '.join(missing)}: restore into the "
                f"same names ({', '.join(sorted(json))})"
            )
        states = {name: _state_of(name, part) for name, part in parts.items()}
        usual = {name for name, part in parts.items() if loads_as_usual(part)}
        values: dict[str, Any] = {}
        memory, made, placed = LiveMemory(saved), Made(), Placed(states)
        with torch.no_grad():
            for name, part in sorted(parts.items(), key=lambda item: precedence(item[1])):
                place = InPlace(name, part, saved, memory, made, placed)
                try:
                    values[name] = unflatten(json[name], place.tensor, states[name], place.array)
                except TwinckptError:
                    raise
                except Exception as error:  # torch and NumPy raise anything, given anything
                    raise RestoreError(
                        f"what was saved of {name} makes no sense: {type(error).__name__}: {error}"
                    ) from error
                if name in usual and (reason := misfit(part, states[name], values[name])):
                    raise RestoreError(
                        f"{name} does not take what the checkpoint has for it: {reason}. Nothing "
                        "is overwritten: make the model, the optimizer and the rest as they were "
                        "when it was saved"
                    )
            saved.finish()
        # A GPU may not have verified its part yet, and `others` may look at what they are given.
        blind = [name for name in parts if name in usual and not has_extra_state(parts[name])]
        others = [name for name in parts if name not in blind]

        def load(names: Iterable[str]) -> None:
            for name in names:
                if id(parts[name]) in made.live and values[name] is not parts[name]:
                    self._parts.replace(name, values[name])  # it has become what another place had
                    continue
                self._load(name, parts[name], states[name], values[name], name in usual)

        load(blind)
        saved.settle()
        made.join()
        load(others)

    def _load(self, name: str, part: Any, live: Any, value: Any, is_usual: bool) -> None:
        try:
            self._hand_over(name, part, live, value, is_usual)
        except TwinckptError:
            raise
        except Exception as error:
            reason = str(error).strip().rstrip(".")
            raise RestoreError(
                f"{name} does not take what the checkpoint has for it: {reason}. The state is "
                "partly overwritten, the checkpoint is as it was: make the model, the "
                "optimizer and the rest as they were when it was saved"
            ) from error

    def _hand_over(self, name: str, part: Any, live: Any, value: Any, is_usual: bool) -> None:
        """Give a part its restored state; what was filled in place is in there as itself."""
        if isinstance(part, torch.nn.Module) and isinstance(value, dict):
            # Tensors that are filled are passed as themselves: loading them copies nothing. If
            # all are the module's, they need not even be told to copy themselves, which is slow
            # for DTensors. Any other would take a parameter's place, which the optimizer holds.
            whole = OrderedDict(value)
            whole._metadata = getattr(live, "_metadata", None)  # type: ignore[attr-defined]
            tensors = [*part.parameters(), *part.buffers()]
            own = {id(tensor) for tensor in tensors}
            options = {}
            if is_usual and all(id(tensor) in own for tensor in whole.values()):
                options["assign"] = True
            # Tensors made for inference take values, and marks, in inference mode only.
            made = [tensor for tensor in tensors if not torch.nn.parameter.is_lazy(tensor)]
            with torch.inference_mode(any(tensor.is_inference() for tensor in made)):
                part.load_state_dict(whole, **options)
        elif is_zero(part):
            load_local_state(part, value)
        elif isinstance(part, torch.optim.Optimizer):
            optimizers.load(part, value)
        elif is_stateful(part):
            part.load_state_dict(value)
        elif isinstance(part, rng.Generator):
            rng.set_state(part, value)
        elif any(isinstance(part, kind) and isinstance(value, kind) for kind in (dict, list, set)):
            containers.fill(part, value)
        elif (
            isinstance(part, torch.Tensor)
            and isinstance(value, torch.Tensor)
            and isinstance(part, DTensor) == isinstance(value, DTensor)
        ):
            if value is not part:  # other than it was: shape, type
                if part.is_leaf:
                    part.requires_grad_(False)
                part.data = value.detach().to(part.device)
                if part.is_leaf:
                    part.requires_grad_(value.requires_grad)
        else:
            self._parts.replace(name, value)


def _state_of(name: str, part: Any) -> Any:
    """Return a part's state; raises UnsupportedStateError with whatever it raises itself."""
    try:
        return _read_state(part)
    except TwinckptError:
        raise
    except Exception as error:
        raise UnsupportedStateError(
            f"{name}.state_dict() raised {type(error).__name__}: {error}"
        ) from error


def _read_state(part: Any) -> Any:
    """Read a part's state; of a module the live parameters themselves, which is cheaper."""
    if isinstance(part, torch.nn.Module):
        try:
            return part.state_dict(keep_vars=True)
        except TypeError:  # its own `state_dict` has no such argument
            return part.state_dict()
    if isinstance(part, rng.Generator):
        return rng.state_of(part)
    if is_zero(part):
        return local_state(part)
    return part.state_dict() if is_stateful(part) else part
