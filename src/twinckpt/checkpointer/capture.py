"""Capturing the state again and again: what has not changed is not walked through in full.

From step to step a state keeps its tensors (their contents change, which does not matter here)
and most of its plain values. The state is therefore cut into fragments, one for each part, or
for each key of a part; one whose tensors and values are the very same keeps its encoded form.
"""

import json
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from twinckpt.checkpointer.flatten import flatten
from twinckpt.checkpointer.tree import FLOAT, FlatState, is_plain_key, local_tensor

Path = tuple[str, ...]

_PLAIN = {str, int, bool, type(None)}


@dataclass(slots=True)
class _Identity:
    """What shows that a subtree is the same as before: marks, equal only if nothing changed.

    It holds the tensors, and what they are the local part of, so that no other object can get the
    address of one of them.
    """

    marks: list[Any] = field(default_factory=list)
    tensors: list[torch.Tensor] = field(default_factory=list, compare=False)
    wrappers: list[torch.Tensor] = field(default_factory=list, compare=False)
    is_certain: bool = True


@dataclass(slots=True)
class _Fragment:
    """One subtree as it was captured; `borrowed` names tensors that are stored elsewhere."""

    identity: _Identity
    flat: FlatState
    borrowed: frozenset[str]


class Capture:
    """Turns a state, a mapping of names to parts' states, into a FlatState."""

    def __init__(self) -> None:
        self._fragments: dict[Path, _Fragment] = {}
        self._joined = FlatState()

    def __call__(self, whole: Mapping[str, Any]) -> FlatState:
        """Return all tensors and plain values as they are now; raises UnsupportedStateError.

        What is returned is not to be changed: it is returned again while nothing changes.
        """
        subtrees = dict(_subtrees(whole))
        identities = {path: _identity(value) for path, value in subtrees.items()}
        kept = self._unchanged(identities)
        if list(kept) == list(subtrees) == list(self._fragments):
            return self._joined
        known = FlatState()
        for fragment in kept.values():
            _add(known, fragment.flat)
        fragments: dict[Path, _Fragment] = {}
        for path, value in subtrees.items():
            if path in kept:
                fragments[path] = kept[path]
                continue
            flat, borrowed = flatten(value, ".".join(path), known)
            _add(known, flat)
            fragments[path] = _Fragment(identities[path], flat, borrowed)
        self._fragments = fragments
        self._joined = _joined(whole, fragments)
        return self._joined

    def _unchanged(self, identities: Mapping[Path, _Identity]) -> dict[Path, _Fragment]:
        kept: dict[Path, _Fragment] = {}
        lost: set[str] = set()
        for path, fragment in self._fragments.items():
            identity = identities.get(path)
            if identity is not None and identity.is_certain and identity == fragment.identity:
                kept[path] = fragment
            else:
                lost.update(fragment.flat.tensors)
        if any(not lost.isdisjoint(fragment.borrowed) for fragment in kept.values()):
            return {}  # what one refers to may be stored under another name now: begin anew
        return kept


def _subtrees(whole: Mapping[str, Any]) -> Iterator[tuple[Path, Any]]:
    for name, value in whole.items():
        if _is_split(value):
            yield from (((name, key), item) for key, item in value.items())
        else:
            yield (name,), value


def _is_split(value: Any) -> bool:
    """Return whether to cut a part by key: a plain dictionary of containers, as an optimizer's."""
    return (
        type(value) is dict
        and any(isinstance(item, dict | list) for item in value.values())
        and all(map(is_plain_key, value))
    )


def _identity(value: Any) -> _Identity:
    identity = _Identity()
    try:
        identity.is_certain = _identify(value, identity)
        identity.marks += _facts(identity.tensors)
    except (RecursionError, RuntimeError, ValueError):
        identity.is_certain = False  # too deep, or no plain memory: refused elsewhere, by name
    return identity


def _facts(tensors: list[torch.Tensor]) -> list[Any]:
    """Return what may change of a tensor that stays the same object: its `data` can be set."""
    return [
        [tensor.data_ptr() for tensor in tensors],
        [tensor.dtype for tensor in tensors],
        [tensor.shape for tensor in tensors],
        [tensor.stride() for tensor in tensors],
        [tensor.requires_grad for tensor in tensors],
        [tensor.is_leaf for tensor in tensors],
        [tensor.is_conj() for tensor in tensors],
        [tensor.is_neg() for tensor in tensors],
    ]


def _identify(value: Any, identity: _Identity) -> bool:
    """Mark everything below `value`; return False if something may change without a trace."""
    kind, marks = type(value), identity.marks
    if kind is torch.Tensor or kind is torch.nn.Parameter:
        identity.tensors.append(value)
        marks.append(id(value))
        return True
    if isinstance(value, torch.Tensor):
        identity.wrappers.append(value)
        identity.tensors.append(local_tensor(value))
        marks += (id(value), id(identity.tensors[-1]), value.requires_grad, value.is_leaf)
        return True
    if kind is dict or kind is OrderedDict:
        kinds = tuple(map(type, value))
        marks += (kind, len(kinds), *kinds, *value)
        if not _PLAIN.issuperset(kinds):
            return False
        values = value.values()
    elif kind is list or kind is tuple:
        marks += (kind, len(value))
        values = value
    elif kind is float:
        marks.append(FLOAT.pack(value))  # tells 0.0 from -0.0, and one NaN from another
        return True
    else:
        marks += (kind, value)
        return kind in _PLAIN
    for item in values:  # noqa: SIM110 - faster than all(), and the path of every save
        if not _identify(item, identity):
            return False
    return True


def _add(known: FlatState, flat: FlatState) -> None:
    known.tensors.update(flat.tensors)
    known.kinds.update(flat.kinds)
    known.originals.update(flat.originals)
    known.places.update(flat.places)


def _joined(whole: Mapping[str, Any], fragments: Mapping[Path, _Fragment]) -> FlatState:
    joined = FlatState()
    for fragment in fragments.values():
        _add(joined, fragment.flat)
    joined.text = _object(
        (
            name,
            _object((key, fragments[name, key].flat.text) for key in value)
            if _is_split(value)
            else fragments[name,].flat.text,
        )
        for name, value in whole.items()
    )
    return joined


def _object(items: Iterable[tuple[str, str]]) -> str:
    return "{" + ",".join(f"{json.dumps(key)}:{text}" for key, text in items) + "}"
