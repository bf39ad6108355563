"""States of every kind, each built anew with other values by another seed."""

import enum
import pathlib
import random
import struct
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn, optim
from torch.optim import lr_scheduler, swa_utils

from twinckpt.checkpointer import rng
from twinckpt.checkpointer.device import DeviceCopies
from twinckpt.checkpointer.layout import Layout, metadata_of
from twinckpt.checkpointer.reading import SlotReader
from twinckpt.checkpointer.staging import SlotTarget, SlotWriter
from twinckpt.checkpointer.state import TrainingState
from twinckpt.memory.checksums import CHUNK_BYTES

Builder = Callable[[], dict[str, Any]]
CARRIED: dict[str, Builder] = {}
REFUSED: dict[str, Builder] = {}


def carried(build: Builder) -> Builder:
    CARRIED[build.__name__] = build
    return build


def refused(build: Builder) -> Builder:
    REFUSED[build.__name__] = build
    return build


# Plain values.


@carried
def floats():
    noisy = torch.tensor([0x7FC00001, 0x7F800001, -0x800000], dtype=torch.int32)
    plain = [float("inf"), -float("inf"), -0.0, 5e-324, 0.1, float("nan"), -float("nan")]
    plain += struct.unpack("2d", struct.pack("2Q", 0x7FF8000000000123, 0x7FF0000000000001))
    return {"x": {"payloads": noisy.view(torch.float32), "plain": plain, "complex": 1 - 2j}}


@carried
def integers():
    return {"x": {"big": 2**200, "low": -(2**70), "huge": 10**5000, "yes": True, "none": None}}


@carried
def strings():
    return {
        "x": {"s": '日本\0\ud800"\\', "🙈": "🙈", "": "empty", "a.b": {"c": 1}, "a": {"b.c": 2}}
    }


@carried
def surrogates_in_pairs():
    """JSON makes one sign of two escapes, which is another text, and may be another key's."""
    pair = "\ud83d\ude00"
    return {"x": {"s": pair, pair: 1, "😀": [2]}, "y": {pair: {"t": torch.rand(2)}, "😀": {}}}


@carried
def keys_of_all_kinds():
    return {
        "x": {1: "int", "1": "str", None: 0, (1, "x"): 0, 2.5: 0, 2**80: 0, "$": 5},
        "y": {"__metadata__": torch.ones(2), "$": {"$": "tensor"}},
    }


@carried
def keys_of_numpy():
    return {"x": Counter(np.arange(30)), "y": {(np.float32(0.5), np.int8(1)): torch.rand(1)}}


@carried
def containers():
    return {
        "x": ((), (1,), [(2, [3])], {"empty": {}, "list": []}),
        "y": OrderedDict([("z", 1), ("a", torch.ones(2))]),
        "z": {"set": {1, 2}, "frozen": frozenset([1, "a"]), "bytes": b"\x00\xff"},
        "counter": Counter({"b": 2, "a": -1}),
        "size": torch.Size([1, 2]),
        "types": [torch.float16, torch.device("cpu")],
        "deep": _nested(150),
    }


def _nested(depth):
    value = [torch.rand(1)]
    for _ in range(depth):
        value = [value]
    return value


@carried
def numpy():
    return {
        "x": {
            "array": np.arange(6).reshape(2, 3),
            "text": np.array(["a", "bc"]),
            "zero": np.ones(()),
            "fortran": np.asfortranarray(np.arange(6).reshape(2, 3)),
            "empty": np.zeros((0, 3)),
            "no_text": [np.str_(""), np.zeros(2, dtype="U0")],
            "time": np.array(["2026-01-01"], dtype="M8[D]"),
        },
        "y": [np.float64(1.5), np.float32(0.1), np.int64(7), np.bool_(True)],
    }


@carried
def random_states():
    return {
        "torch": torch.Generator().manual_seed(torch.randint(1000, ()).item()),
        "python": random.Random(random.random()),
        "numpy": [_drawn(kind) for kind in (np.random.PCG64, np.random.MT19937, np.random.SFC64)],
        "legacy": {"numpy": np.random.RandomState(np.random.randint(1000))},
        "more": [torch.random.get_rng_state(), random.getstate(), np.random.get_state()],
    }


def _drawn(kind):
    generator = np.random.Generator(kind(np.random.randint(1000)))
    generator.integers(9, dtype=np.int32)  # the other half of what was drawn is kept
    return generator


# Tensors.


def _of_type(name):
    return lambda: {
        "x": {"t": torch.randint(0, 2, (16,), dtype=torch.uint8).view(getattr(torch, name))}
    }


_QUANTIZED = ("qint8", "quint8", "qint32", "quint4x2", "quint2x4")
for _name in sorted({str(t)[6:] for t in vars(torch).values() if isinstance(t, torch.dtype)}):
    if _name not in _QUANTIZED:
        CARRIED[f"dtype_{_name}"] = _of_type(_name)


@carried
def shapes():
    return {
        "x": {
            "empty": torch.empty(0, 3),
            "scalar": torch.rand(()),
            "strided": torch.rand(20)[::3],
            "transposed": torch.rand(3, 4).t(),
            "expanded": torch.rand(1, 3).expand(4, 3),
            "channels_last": torch.rand(2, 3, 4, 5).to(memory_format=torch.channels_last),
        }
    }


@carried
def views():
    base = torch.rand(12)
    z = torch.randn(3, dtype=torch.complex64)
    return {
        "x": {"base": base, "slice": base[2:5], "t": base.view(3, 4).t(), "same": base},
        "y": {"z": z, "conj": z.conj(), "imag": z.imag, "neg": z.conj().imag},
        "w": torch._neg_view(torch.randn(3)),
    }


@carried
def gradients():
    return {
        "x": {
            "leaf": torch.rand(3, requires_grad=True),
            "frozen": nn.Parameter(torch.rand(2), requires_grad=False),
            "parameter": nn.Parameter(torch.rand(2)),
        },
        "y": nn.Parameter(torch.rand(3)),
    }


@carried
def many_tiny_tensors():
    return {"x": {f"k{i}": torch.rand(3) for i in range(2000)}}


@carried
def odd_names_of_tensors():
    names = ("", "a.b", "a/b", "\n", "\0", "'", "__metadata__", "\ud800", "🙈", "x" * 5000)
    return {"x": {name: torch.rand(2) for name in names}, "\udcff": torch.rand(1)}


# Modules and optimizers.


class Extra(nn.Module):
    """Has state that is no tensor, given by `get_extra_state`."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(2))
        self.value = torch.rand(1).item()

    def get_extra_state(self):
        return {"value": self.value, "tensor": torch.tensor([self.value])}

    def set_extra_state(self, state):
        self.value = state["value"]


class Inner(nn.Module):
    """Gives and takes the state of a part of itself, by methods that have no further arguments."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(2, 2)

    def state_dict(self):
        return {"inner": self.inner.state_dict()}

    def load_state_dict(self, state):
        self.inner.load_state_dict(state["inner"])


class Listing(Inner):
    """A module whose state is no dictionary."""

    def state_dict(self):
        return [tensor.detach() for tensor in self.inner.parameters()]

    def load_state_dict(self, state):
        for parameter, saved in zip(self.inner.parameters(), state, strict=True):
            parameter.data.copy_(saved)


class Counting:
    """A stateful object that is neither a module nor an optimizer."""

    def __init__(self):
        self.count = torch.rand(2)

    def state_dict(self):
        return {"count": self.count, "length": len(self.count)}

    def load_state_dict(self, state):
        self.count = state["count"].clone()


@carried
def modules():
    parametrized = nn.utils.parametrizations
    return {
        "plain": nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.LSTM(4, 5)),
        "attention": nn.TransformerEncoderLayer(8, 2, 16),
        "extra": Extra(),
        "inner": Inner(),
        "listing": Listing(),
        "normed": parametrized.weight_norm(nn.Linear(3, 3)),
        "orthogonal": parametrized.orthogonal(nn.Linear(3, 3)),
        "averaged": swa_utils.AveragedModel(nn.Linear(2, 2)),
        "compiled": torch.compile(nn.Linear(2, 2)),
        "without_buffers": nn.BatchNorm1d(3, track_running_stats=False),
    }


@carried
@torch.inference_mode()
def modules_made_for_inference():
    """As a teacher that is a deep copy: neither its values nor its marks change elsewhere."""
    teacher = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    return {"teacher": teacher, "frozen": nn.Linear(2, 2).requires_grad_(False), "extra": Extra()}


@carried
def tied():
    embedding, head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleList([embedding, head])
    optimizer = optim.AdamW(model.parameters())
    head(embedding(torch.tensor([1]))).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


@carried
def nested_parts():
    model = nn.Linear(2, 2)
    optimizers = [optim.SGD([p], lr=0.1, momentum=0.9) for p in model.parameters()]
    model(torch.rand(1, 2)).sum().backward()
    for optimizer in optimizers:
        optimizer.step()
    counters = {"counters": [Counting(), Counting()], "epoch": random.random()}
    return {"train": {"model": model, "optimizers": optimizers}, "data": counters}


def _trained(kind, **options):
    def build():
        model = nn.Linear(3, 2)
        optimizer = kind(model.parameters(), **options)

        def closure():
            optimizer.zero_grad()
            loss = model(torch.randn(4, 3)).square().sum()
            loss.backward()
            return loss

        optimizer.step(closure)
        scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
        return {"model": model, "optimizer": optimizer, "scheduler": scheduler}

    return build


for _kind in ("SGD", "Adam", "AdamW", "Adagrad", "Adadelta", "Adamax", "NAdam", "RAdam", "RMSprop"):
    CARRIED[f"optim_{_kind}"] = _trained(getattr(optim, _kind))
for _kind in ("Rprop", "ASGD", "Adafactor", "LBFGS"):
    CARRIED[f"optim_{_kind}"] = _trained(getattr(optim, _kind))


@carried
def optim_own_state():
    """Of kinds that torch's own `load_state_dict` makes other values of."""
    state = _trained(optim.Adam, lr=0.1)()
    half = state["model"].half()
    state["optimizer"].state[half.weight] |= {
        "phase": "warm",
        "pair": (torch.rand(2), ["a"]),
        "kinds": OrderedDict(seen=Counter(a=1), names=frozenset("a"), mean=torch.rand(2)),
    }
    return state


CARRIED["optim_momentum"] = _trained(optim.SGD, lr=0.1, momentum=0.9)
CARRIED["optim_tensor_lr"] = _trained(optim.Adam, lr=torch.tensor(0.1))
CARRIED["optim_fused"] = _trained(optim.Adam, fused=True)
CARRIED["optim_amsgrad"] = _trained(optim.Adam, amsgrad=True)


@carried
def schedulers():
    optimizer = optim.SGD([nn.Parameter(torch.rand(2))], lr=0.1)
    constant = lr_scheduler.ConstantLR(optimizer)
    return {
        "optimizer": optimizer,
        "cycle": lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=10),
        "sequence": lr_scheduler.SequentialLR(
            optimizer, [constant, lr_scheduler.ExponentialLR(optimizer, 0.9)], [2]
        ),
        "milestones": lr_scheduler.MultiStepLR(optimizer, [2, 2, 5]),
        "warm": lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 5),
        "cyclic": lr_scheduler.CyclicLR(optimizer, 0.1, 0.5),
        "averaging": swa_utils.SWALR(optimizer, 0.05),
        "plateau": lr_scheduler.ReduceLROnPlateau(optimizer),
        "scaler": torch.amp.GradScaler("cpu"),
    }


# What could only be carried by pickling it, or not at all.

Pair = namedtuple("Pair", "first second")


class Color(enum.Enum):
    RED = 1


class Word(enum.StrEnum):
    A = "a"


class Items(list):
    """A list of a type of its own."""


class Wrapping(torch.Tensor):
    """A tensor that has none of the bytes itself, as those of quantization libraries."""

    @staticmethod
    def __new__(cls, inner):
        made = torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=inner.dtype)
        made.inner = inner
        return made

    def __init__(self, inner):
        pass

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        plain = [arg.inner if isinstance(arg, cls) else arg for arg in args]
        return function(*plain, **(kwargs or {}))


def _refusing(value):
    return lambda: {"x": {"odd": value()}}


def _bfloat16_of_numpy():
    kind = pytest.importorskip("ml_dtypes").bfloat16
    return np.ones(3, dtype=kind)


REFUSED |= {
    "type_of_another_package": _refusing(_bfloat16_of_numpy),
    "sparse": _refusing(lambda: torch.eye(3).to_sparse()),
    "compressed": _refusing(lambda: torch.eye(3).to_sparse_csr()),
    "quantized": _refusing(lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)),
    "nested_tensor": _refusing(lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])),
    "meta": _refusing(lambda: torch.empty(3, device="meta")),
    "named_tuple": _refusing(lambda: Pair(1, 2)),
    "enumeration": _refusing(lambda: Color.RED),
    "default_dict": _refusing(lambda: defaultdict(int)),
    "word": _refusing(lambda: Word.A),
    "items": _refusing(lambda: Items([1])),
    "wrapping": _refusing(lambda: Wrapping(torch.ones(3))),
    "no_shape_yet": _refusing(nn.parameter.UninitializedParameter),
    "key_of_many_digits": _refusing(lambda: {10**5000: 1}),
    "tensor_as_key": _refusing(lambda: {torch.ones(1): 1}),
    "records": _refusing(lambda: np.zeros(2, dtype=[("a", "i4"), ("b", "f8")])),
    "masked_array": _refusing(lambda: np.ma.array([1, 2], mask=[0, 1])),
    "deque": _refusing(lambda: deque([1])),
    "bytearray": _refusing(lambda: bytearray(b"x")),
    "path": _refusing(lambda: pathlib.Path("/x")),
    "function": _refusing(lambda: len),
    "object": _refusing(object),
    "object_array": _refusing(lambda: np.array([object()])),
    "too_deep": _refusing(lambda: _nested(2000)),
}


@refused
def contains_itself():
    odd: dict[str, Any] = {}
    odd["odd"] = odd
    return {"x": odd}


def assert_same(left: Any, right: Any, path: str = "") -> None:
    """Compare bit for bit, types and order of keys included."""
    if isinstance(left, torch.Tensor):
        assert type(left) is type(right), path
        assert (left.dtype, left.shape) == (right.dtype, right.shape), path
        assert left.requires_grad == right.requires_grad, path
        assert torch.equal(_bits(left), _bits(right)), path
    elif isinstance(left, np.ndarray):
        assert left.dtype == right.dtype, path
        assert left.flags.fnc == right.flags.fnc, path
        assert left.tobytes() == right.tobytes(), path
    elif isinstance(left, Mapping):
        assert type(left) is type(right), path
        assert list(left) == list(right), path
        for key, value in left.items():
            assert_same(value, right[key], f"{path}.{key}")
    elif isinstance(left, list | tuple):
        assert type(left) is type(right), path
        assert len(left) == len(right), path
        for index, value in enumerate(left):
            assert_same(value, right[index], f"{path}.{index}")
    elif isinstance(left, float):
        assert type(left) is type(right), path
        assert struct.pack("d", left) == struct.pack("d", right), path
    elif isinstance(left, rng.Generator):
        assert type(left) is type(right), path
        assert_same(rng.state_of(left), rng.state_of(right), path)
    elif hasattr(left, "state_dict"):
        assert_same(left.state_dict(), right.state_dict(), path)
    else:
        assert type(left) is type(right), path
        assert left == right, path


def _bits(tensor):
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return plain.reshape(-1).view(torch.uint8)


def seeded(seed, build):
    """What a builder makes of a seed."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)
    return build()


def slot_of(state):
    """The bytes that `save` makes of a state."""
    flat = TrainingState(state).capture()
    layout = Layout(flat)
    slot = memoryview(bytearray(layout.size_bytes))
    header = layout.header(metadata_of(flat, layout, step=1))
    writer = SlotWriter(SlotTarget(layout, slot), flat, header, DeviceCopies())
    writer.copy_now(frozenset())
    writer.copy_rest()
    return slot


def restored(slot, into):
    """The state `into`, with what was saved in it."""
    reader = SlotReader(slot, CHUNK_BYTES)
    TrainingState(into).restore(reader.metadata["state"], reader)
    return into
