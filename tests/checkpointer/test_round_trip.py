"""What is saved comes back bit for bit, in place."""

import datetime
import enum
import math
import random
from collections import OrderedDict, deque
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from catalogue import assert_same
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from twinckpt.checkpointer import moving
from twinckpt.checkpointer.device import DeviceCopies
from twinckpt.checkpointer.layout import Layout, metadata_of, parse
from twinckpt.checkpointer.reading import SavedTensors, SlotReader
from twinckpt.checkpointer.staging import SlotTarget, SlotWriter, TornCopyError
from twinckpt.checkpointer.state import TrainingState
from twinckpt.errors import DamagedCopyError, RestoreError, UnsupportedStateError
from twinckpt.memory.checksums import CHUNK_BYTES, checksum

DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int16, torch.uint32, torch.int32),
    *(torch.uint64, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.complex64, torch.complex128, torch.float8_e4m3fn, torch.float8_e5m2),
    *(torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu),
]


def slot_and_writer(state):
    """Make a slot that a state fits into, and what fills it."""
    flat = TrainingState(state).capture()
    layout = Layout(flat)
    metadata = metadata_of(flat, layout, step=1)
    slot = memoryview(bytearray(layout.size_bytes))
    target = SlotTarget(layout, slot)
    return slot, SlotWriter(target, flat, layout.header(metadata), DeviceCopies())


def stage(state):
    """Write a state into a slot the way `Checkpointer.save` does; return the slot."""
    slot, writer = slot_and_writer(state)
    digests = writer.copy_rest()
    assert digests == checksum(slot)
    return slot


def restore(slot, into):
    """Write a slot back into a state the way `Checkpointer.restore` does."""
    reader = SlotReader(slot, CHUNK_BYTES, lambda index: None)
    TrainingState(into).restore(reader.metadata["state"], reader)
    return into


def bits(tensor):
    """Return a tensor's bytes, so that NaN compares like any value."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def random_bits(dtype, shape):
    """Return a tensor of every bit pattern, NaN and infinities included."""
    size = torch.empty(shape, dtype=dtype)
    raw = torch.randint(0, 256, (size.numel() * size.element_size(),), dtype=torch.uint8)
    return (raw % 2 if dtype == torch.bool else raw).view(dtype).view(shape)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (5, 0, 2), (4, 3, 2)], ids=str)
def test_every_dtype_and_shape(dtype, shape):
    """Zero-dimensional and empty tensors too."""
    saved = random_bits(dtype, shape)
    found = restore(stage({"t": {"x": saved}}), {"t": None})["t"]["x"]
    assert (found.dtype, found.shape) == (saved.dtype, saved.shape)
    assert torch.equal(bits(found), bits(saved))


def test_the_default_device_is_no_matter():
    """Empty tensors used to be made on it."""
    slot = stage({"x": [torch.empty(0, 3), torch.ones(2)]})
    with torch.device("meta"):
        found = restore(slot, {"x": []})["x"]
    assert [tensor.device.type for tensor in found] == ["cpu", "cpu"]


def test_large_tensors_cross_chunk_borders():
    """More than one chunk, and not a multiple of it."""
    state = {"a": torch.randn(700_001), "b": torch.randn(3), "c": torch.randn(1_300_003).half()}
    into = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    restore(stage(state), into)
    assert all(torch.equal(into[name], state[name]) for name in state)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(6, 4).t(),
        torch.randn(10, 10)[::2, 1::3],
        torch.randn(4, 1).expand(4, 7),
        torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last),
        torch.randn(1200, 1100).t(),
    ],
    ids=["transposed", "strided", "expanded", "channels-last", "large transposed"],
)
def test_layouts_in_memory(tensor):
    """Values come back, whatever the strides; live tensors keep theirs."""
    into = {"t": torch.zeros_like(tensor)}
    strides = into["t"].stride()
    restore(stage({"t": tensor}), into)
    assert torch.equal(into["t"], tensor)
    assert into["t"].stride() == strides


@pytest.mark.parametrize("dtype", [torch.uint1, torch.int4, torch.float8_e8m0fnu], ids=str)
@pytest.mark.parametrize("is_live", [True, False])
def test_layouts_of_types_that_torch_cannot_copy(dtype, is_live):
    """The save used to end the training with torch's error."""
    raw, into = (torch.randint(256, (6, 4), dtype=torch.uint8) for _ in range(2))
    slot = stage({"x": {"t": raw.view(dtype).t(), "rows": raw.view(dtype)[::2]}})
    live = {"t": into.view(dtype).t(), "rows": into.clone().view(dtype)[::2]} if is_live else {}
    restore(slot, {"x": live})
    assert torch.equal(live["t"].view(torch.uint8), raw.t())
    assert torch.equal(live["rows"].view(torch.uint8), raw[::2])


def test_a_new_tensor_lies_in_memory_as_the_saved_one():
    """If the saved tensor fills its memory; memory that it skips or repeats is not stored."""
    image = torch.randn(2, 3, 8, 8).to(memory_format=torch.channels_last)
    depthwise = torch.randn(6, 1, 3, 3).to(memory_format=torch.channels_last)
    saved = {"image": image, "t": torch.randn(3, 4).t(), "part": torch.randn(9)[::2]}
    saved["depthwise"] = depthwise
    found = restore(stage({"x": saved}), {"x": None})["x"]
    assert all(torch.equal(found[name], saved[name]) for name in saved)
    assert [found[name].stride() for name in saved] == [image.stride(), (1, 4), (1,), (9, 1, 3, 1)]


def test_a_fused_optimizer_of_a_channels_last_model_goes_on_bit_for_bit():
    """It goes through the memory of parameters and moments alike."""

    def build():
        torch.manual_seed(1)
        model = torch.nn.Conv2d(3, 8, 3).to(memory_format=torch.channels_last)
        return {"model": model, "optimizer": torch.optim.AdamW(model.parameters(), fused=True)}

    def train(state, steps):
        for step in steps:
            data = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(step))
            state["optimizer"].zero_grad()
            state["model"](data).square().mean().backward()
            state["optimizer"].step()

    undisturbed = build()
    train(undisturbed, range(3))
    resumed = restore(stage(undisturbed), build())
    for state in (undisturbed, resumed):
        train(state, range(3, 6))
    assert torch.equal(undisturbed["model"].weight, resumed["model"].weight)


@pytest.fixture
def mesh():
    """A mesh of this process alone."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_a_shard_of_optimizer_state_lies_in_memory_as_the_saved_one(mesh):
    """As that of a channels-last model, where the optimizer has no state yet."""

    def build():
        local = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
        weight = torch.nn.Parameter(DTensor.from_local(local, mesh, [Shard(0)]))
        return {
            "weights": torch.nn.ParameterList([weight]),
            "optimizer": torch.optim.AdamW([weight]),
        }

    saved, fresh = build(), build()
    (weight,) = saved["weights"]
    weight.grad = weight.detach() * 2
    saved["optimizer"].step()
    restore(stage(saved), fresh)
    expected, found = (
        state["optimizer"].state_dict()["state"][0]["exp_avg"].to_local()
        for state in (saved, fresh)
    )
    assert torch.equal(found, expected)
    assert found.stride() == expected.stride() == (12, 1, 6, 3)


class FloatMomentum(torch.optim.Optimizer):
    """Keeps its state in types of its own choice, whatever that of the parameters is."""

    @torch.no_grad()
    def step(self):
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter] = {
                "momentum": torch.randn(parameter.shape),
                "codes": torch.randint(255, parameter.shape, dtype=torch.uint8),
                "history": [torch.randn(2), torch.tensor(2**40 + 1)],
                "scales": {"absolute": torch.randn(2), "index": torch.tensor(2**60 + 1)},
            }


@pytest.mark.parametrize(
    "make", [torch.optim.NAdam, torch.optim.ASGD, lambda p: FloatMomentum(p, {})]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
def test_state_of_another_type_than_the_parameters_keeps_it(make, dtype):
    """`load_state_dict` of torch casts it: 32-bit moments of 16-bit weights would lose bits."""

    def build():
        model = torch.nn.Linear(3, 3).to(dtype)
        return {"model": model, "optimizer": make(model.parameters())}

    saved, fresh = build(), build()
    saved["model"](torch.randn(2, 3, dtype=dtype)).sum().backward()
    saved["optimizer"].step()
    restore(stage(saved), fresh)
    assert_same(saved["optimizer"].state_dict(), fresh["optimizer"].state_dict())


@pytest.mark.parametrize("names", [("model", "best"), ("best", "model")])
def test_what_begins_as_the_model_itself_is_restored_beside_it(names):
    """`best = model.state_dict()` is the weights themselves until better ones are copied."""
    model, fresh = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    best = {name: torch.randn_like(tensor) for name, tensor in model.state_dict().items()}
    state = {"model": model, "best": {"weights": best}}
    into = {"model": fresh, "best": {"weights": fresh.state_dict()}}
    weight = fresh.weight
    restore(stage({name: state[name] for name in names}), {name: into[name] for name in names})
    assert fresh.weight is weight
    assert torch.equal(fresh.weight, model.weight)
    assert torch.equal(into["best"]["weights"]["weight"], best["weight"])


@pytest.mark.parametrize("names", [("buffer", "row"), ("row", "buffer")])
@pytest.mark.parametrize("view", ["row", "column"])
def test_views_of_other_places_than_before_are_restored_apart(names, view):
    """An observation is a row of the replay buffer, in a fresh process the first: it was filled
    with what another row had."""

    def look(buffer, index):
        return {"buffer": buffer, "row": buffer[index] if view == "row" else buffer[:, index]}

    saved, live = look(torch.rand(5, 4), 3), look(torch.zeros(5, 4), 0)
    restore(
        stage({"x": {n: saved[n] for n in names}}), {"x": (into := {n: live[n] for n in names})}
    )
    assert torch.equal(into["buffer"], saved["buffer"])
    assert torch.equal(into["row"], saved["row"])


def test_views_of_the_same_places_as_before_stay_views() -> None:
    """As parameters that are cut out of one flat buffer."""

    def build():
        flat = torch.rand(12)
        return {"head": flat[:4].view(2, 2), "flat": flat, "odd": flat[1::2], "tail": flat[8:]}

    saved, live = build(), build()
    into = {"x": dict(live)}
    restore(stage({"x": saved}), into)
    assert_same(saved, into["x"])
    assert all(into["x"][name] is tensor for name, tensor in live.items())


def test_windows_that_overlap_are_not_filled_with_what_was_apart() -> None:
    into = {"x": {"windows": torch.zeros(10).unfold(0, 3, 1)}}
    saved = {"x": {"windows": torch.rand(8, 3)}}
    restore(stage(saved), into)
    assert torch.equal(into["x"]["windows"], saved["x"]["windows"])


class Swapping(torch.optim.Optimizer):
    """Begins with one tensor as what is now and what was before."""

    def __init__(self, parameters):
        super().__init__(parameters, {})
        for parameter in self.param_groups[0]["params"]:
            begin = torch.zeros_like(parameter)
            self.state[parameter] = {"now": begin, "before": begin}

    def step(self):
        for state in self.state.values():
            state["before"], state["now"] = state["now"], torch.rand_like(state["now"])


def test_optimizer_state_that_begins_as_one_tensor_is_restored_apart() -> None:
    saved, fresh = (Swapping([torch.nn.Parameter(torch.rand(3))]) for _ in range(2))
    saved.step()
    restore(stage({"optimizer": saved}), {"optimizer": fresh})
    assert_same(saved.state_dict(), fresh.state_dict())


def test_a_learning_rate_that_the_loop_holds_stays_the_optimizers() -> None:
    """Torch copies it, so the loop's changes to it used to have no effect from then on."""

    def build(lr):
        optimizer = torch.optim.SGD([torch.rand(2, requires_grad=True)], lr=torch.tensor(lr))
        return {"optimizer": optimizer, "lr": optimizer.param_groups[0]["lr"]}

    fresh = build(0.1)
    lr = fresh["lr"]
    restore(stage(build(0.3)), fresh)
    assert fresh["optimizer"].param_groups[0]["lr"] is fresh["lr"] is lr
    assert lr == torch.tensor(0.3)


def test_plain_values_keep_value_and_type():
    """Nested containers of everything that JSON alone would change."""
    saved = {
        "big": 2**200,
        "negative": -(2**70),
        "nan": math.nan,
        "infinite": [math.inf, -math.inf],
        "tiny": 5e-324,
        "complex": complex(1.5, -0.0),
        "text": "Ω 漢字 \U0001f40d \x00 \"'\\",
        "bytes": bytes(range(256)),
        "tuple": (1, (2.5, None), [True, False]),
        "keys": {1: "int", (2, 3): "tuple", None: "none"},
        "dollar": {"$": "not a tag"},
        "ordered": OrderedDict([("b", 1), ("a", 2)]),
        "set": {3, 1, 2},
        "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16,
        "device": torch.device("cpu"),
        "array": np.arange(6, dtype=">i2").reshape(2, 3),
        "scalar": np.float32(0.1),
    }
    found = restore(stage({"plain": saved}), {"plain": None})["plain"]
    assert math.isnan(found.pop("nan"))
    saved.pop("nan")
    assert np.array_equal(found.pop("array"), saved["array"])
    assert saved.pop("array") is not None
    assert found == saved
    for name, value in saved.items():
        assert type(found[name]) is type(value), name
    assert math.copysign(1, found["complex"].imag) == -1
    assert list(found["keys"]) == [1, (2, 3), None]


@pytest.mark.parametrize("text", [np.str_("a\0"), np.bytes_(b"\0\0"), np.str_("é"), np.bytes_(b"")])
def test_a_text_of_numpy_keeps_the_nuls_that_it_ends_with(text):
    """An array would have cut them off."""
    found = restore(stage({"x": {"text": text}}), {"x": None})["x"]["text"]
    assert (type(found), found) == (type(text), text)


class Opaque:
    """Something that could only be pickled."""


@pytest.mark.parametrize("value", [Opaque(), lambda: 0, [1, {"x": Opaque()}]])
def test_what_cannot_be_carried_is_refused_by_name(value):
    """The message says where it is and what to do."""
    with pytest.raises(UnsupportedStateError, match=r"mine.*state_dict"):
        stage({"mine": value})


@pytest.mark.parametrize(
    ("value", "instead"),
    [
        (deque([1]), "a list of its items"),
        ({random.Random(1)}, r"its getstate\(\)"),
        ({np.random.default_rng(1)}, r"its bit_generator\.state"),
        ({np.random.RandomState(1)}, r"its get_state\(\)"),
        ([{torch.nn.Linear(1, 1)}], r"its state_dict\(\)"),
        (bytearray(1), "its bytes"),
        (torch.ones(2).max(0), "a plain tuple of its items"),
        (range(3), "a list of its items"),
        (enum.Enum("Phase", "WARM").WARM, "its value"),
        (Path("/data"), "it as text"),
        (datetime.datetime(2026, 1, 1), "it as text"),
        (Decimal("0.1"), "it as text"),
        (np.dtype("f4"), "it as text"),
    ],
)
def test_a_refusal_says_what_may_be_stored_instead(value, instead):
    with pytest.raises(UnsupportedStateError, match=f"mine.* is a .*; store {instead}, or leave"):
        stage({"mine": value})


@pytest.mark.parametrize(
    "node",
    [
        {"$": "float", "bits": "no number"},
        {"$": "size", "items": ["one"]},
        {"$": "device", "name": "abacus"},
        {"$": "tensor"},
        {"$": "tensor", "tensor": "nowhere"},
        {"$": "dict", "items": [[[], 1]]},
    ],
    ids=str,
)
def test_what_no_checkpoint_holds_is_refused_by_name(node):
    """As if it had been forged, with correct checksums."""
    with pytest.raises(RestoreError, match="what was saved of plain makes no sense"):
        TrainingState({"plain": {"x": 1}}).restore({"plain": {"x": node}}, SavedTensors({}))


def test_what_an_optimizer_returned_in_its_place_is_warned_of(caplog):
    """As in what one hands to `torch.save`; here the same would be saved in every step."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    TrainingState({"model": model.state_dict(), "optimizer": optimizer})
    assert not caplog.messages
    TrainingState({"model": model, "mine": optimizer.state_dict()})
    assert ["mine is what an optimizer's" in message for message in caplog.messages] == [True]


def test_tied_weights_are_stored_once_and_stay_tied():
    """Two names, one tensor."""
    model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    model[1].weight = model[0].weight
    slot = stage({"model": model})
    assert len(slot) < 2 * 64 * 64 * 4
    other = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 64))
    other[1].weight = other[0].weight
    restore(slot, {"model": other})
    assert other[0].weight is other[1].weight
    assert torch.equal(other[0].weight, model[0].weight)


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, centered=True, momentum=0.5),
        lambda p: torch.optim.Adagrad(p),
        lambda p: torch.optim.LBFGS(p, max_iter=2),
        lambda p: torch.optim.Adafactor(p),
    ],
    ids=["SGD", "AdamW", "RMSprop", "Adagrad", "LBFGS", "Adafactor"],
)
def test_training_continues_bit_for_bit_in_a_fresh_process(make):
    """Optimizer state that does not exist yet is created by the restore."""

    def build():
        torch.manual_seed(1)
        model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.BatchNorm1d(8))
        optimizer = make(model.parameters())
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2)
        return {"model": model, "optimizer": optimizer, "schedule": schedule}

    def train(state, steps):
        for step in steps:
            data = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))

            def closure(data=data):
                state["optimizer"].zero_grad()
                loss = state["model"](data).pow(2).mean()
                loss.backward()
                return loss

            state["optimizer"].step(closure)
            state["schedule"].step()

    undisturbed = build()
    train(undisturbed, range(3))
    slot = stage(undisturbed)
    train(undisturbed, range(3, 6))
    resumed = restore(slot, build())
    train(resumed, range(3, 6))
    expected, found = undisturbed["model"].state_dict(), resumed["model"].state_dict()
    assert all(torch.equal(bits(found[name]), bits(expected[name])) for name in expected)


def test_restore_writes_into_the_live_parameters():
    """References that others hold, such as a compiled graph's, stay valid."""
    model = torch.nn.Linear(4, 4)
    slot = stage({"model": model})
    weight, pointer = model.weight, model.weight.data_ptr()
    expected = weight.detach().clone()
    with torch.no_grad():
        weight.zero_()
    restore(slot, {"model": model})
    assert model.weight is weight
    assert weight.data_ptr() == pointer
    assert torch.equal(weight, expected)


def converting(module: torch.nn.Linear) -> torch.nn.Linear:
    """Give a module a hook that puts other tensors into its state dictionary."""

    def convert(module, state, prefix, metadata):
        state.update({key: tensor.detach().float() for key, tensor in state.items()})

    module.register_state_dict_post_hook(convert)
    return module


def filtering(module: torch.nn.Linear) -> torch.nn.Linear:
    """Give a module a hook that replaces what is loaded."""

    def filtered(module, state, prefix, metadata, strict, missing, unexpected, errors):
        state.update({key: tensor.detach().clone() for key, tensor in state.items()})

    module.register_load_state_dict_pre_hook(filtered)
    return module


class Compact(torch.nn.Linear):
    """A module whose state dictionary is of its own making."""

    def state_dict(self, *args, **kwargs):
        return {key: tensor.clone() for key, tensor in super().state_dict(*args, **kwargs).items()}


@pytest.mark.parametrize(
    "build",
    [
        lambda: converting(torch.nn.Linear(4, 4).bfloat16()),
        lambda: filtering(torch.nn.Linear(4, 4)),
        lambda: Compact(4, 4),
    ],
    ids=["state hook", "load hook", "own state_dict"],
)
def test_a_module_that_makes_its_own_state_keeps_its_parameters(build) -> None:
    """An optimizer holds them: others in their place would silently not be trained."""
    saved, model = build(), build()
    parameters = list(model.parameters())
    restore(stage({"model": saved}), {"model": model})
    assert all(
        own is parameter for own, parameter in zip(model.parameters(), parameters, strict=True)
    )
    assert torch.equal(model.weight, saved.weight)


@torch.inference_mode()
def inference_tensors(fill):
    return {"x": {"plain": fill(4, 3), "t": fill(4, 3).t()}, "y": fill(2)}


def test_tensors_made_for_inference_are_filled_in_place_too() -> None:
    """As targets that a teacher computed; every restore into them used to fail."""
    saved, into = inference_tensors(torch.rand), inference_tensors(torch.zeros)
    live = into["x"]["t"]
    restore(stage(saved), into)
    assert_same(saved, into)
    assert into["x"]["t"] is live


@pytest.mark.parametrize("make", [torch.Tensor.requires_grad_, torch.nn.Parameter])
def test_whether_a_tensor_of_the_loop_is_trained_is_restored(make) -> None:
    """As latents that are optimized from some step on; a module's parameters are the script's."""
    saved = {"x": {"a": make(torch.rand(2), True), "b": make(torch.rand(2), False)}}
    into = {"x": {"a": make(torch.rand(2), False), "b": make(torch.rand(2), True)}}
    live = into["x"]["a"]
    restore(stage(saved), into)
    assert_same(saved, into)
    assert into["x"]["a"] is live


def test_a_write_during_the_copy_is_detected():
    """The checkpoint would mix two steps."""
    state = {"t": torch.zeros(10)}
    _, writer = slot_and_writer(state)
    writer.copy_now(frozenset())
    state["t"].add_(1)
    with pytest.raises(TornCopyError, match=r"t .*changed while it was copied"):
        writer.copy_rest()


def test_another_set_of_names_is_refused():
    """Nothing is silently restored by halves."""
    with pytest.raises(RestoreError, match="optimizer"):
        restore(stage({"model": torch.zeros(1)}), {"model": torch.zeros(1), "optimizer": 1})


@pytest.mark.parametrize("damage", [b"", b"\xff" * 64, b"\x10" + bytes(7) + b"{not json       "])
def test_bytes_that_are_no_checkpoint_are_refused(damage):
    """Whatever they are, the error is ours."""
    with pytest.raises(DamagedCopyError):
        parse(memoryview(bytearray(damage)))


def test_dictionaries_and_lists_are_filled_in_place():
    """Whoever holds them sees the restored values."""
    saved = {"progress": {"step": 3, "seen": [1, 2]}, "history": [0.5, 0.25]}
    progress, history = {"step": 0, "extra": True}, []
    restore(stage(saved), {"progress": progress, "history": history})
    assert progress == {"step": 3, "seen": [1, 2]}
    assert history == [0.5, 0.25]


def test_arrays_and_sets_are_filled_in_place() -> None:
    """As tensors are: a loop that goes on with its own variable has the restored values."""
    slot = stage({"a": np.arange(3.0), "b": {"x": [np.ones((2, 2))]}, "seen": {1, 2}})
    a, x, seen = np.zeros(3), np.zeros((2, 2)), {7}
    restore(slot, {"a": a, "b": {"x": [x]}, "seen": seen})
    assert a.tolist() == [0.0, 1.0, 2.0]
    assert x.tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert seen == {1, 2}


def test_an_array_in_another_form_is_filled_in_place_too() -> None:
    """As `permutation(n).reshape(…)`: a loop went on with its own variable, and the old values."""
    slot = stage({"a": np.arange(6.0).reshape(2, 3), "b": [np.arange(6.0).reshape(3, 2).T]})
    a, b = np.zeros(6).reshape(2, 3), np.zeros((3, 2)).T
    restore(slot, {"a": a, "b": [b]})
    assert (a.tolist(), b.tolist()) == ([[0, 1, 2], [3, 4, 5]], [[0, 2, 4], [1, 3, 5]])


@pytest.mark.parametrize("view", [lambda x: x[:2], lambda x: x.reshape(2, 2), lambda x: x[::-1]])
@pytest.mark.parametrize("names", [("whole", "view"), ("view", "whole")])
def test_an_array_that_is_another_ones_memory_is_restored_beside_it(names, view) -> None:
    whole = np.zeros(4)
    live = {"whole": whole, "view": view(whole)}
    saved = {"whole": np.arange(4.0), "view": np.full_like(live["view"], 9)}
    into = {"x": {name: live[name] for name in names}}
    restore(stage({"x": saved}), into)
    assert_same(saved["view"], into["x"]["view"])
    assert_same(saved["whole"], into["x"]["whole"])


def test_arrays_that_were_apart_are_not_filled_as_one() -> None:
    """One that begins as another (`best = scores`) has been copied when it was saved."""
    scores = np.zeros(2)
    weight = torch.nn.Parameter(torch.zeros(2))
    into = {"scores": scores, "best": [scores], "w": weight, "n": {"w": weight.detach().numpy()}}
    saved = {"scores": np.ones(2), "best": [np.full(2, 9.0)], "w": weight + 1, "n": {}}
    saved["n"]["w"] = np.full(2, 5.0, dtype=np.float32)
    restore(stage(saved), into)
    assert into["scores"] is scores
    assert (scores.tolist(), into["best"][0].tolist()) == ([1.0, 1.0], [9.0, 9.0])
    assert (weight.tolist(), into["n"]["w"].tolist()) == ([1.0, 1.0], [5.0, 5.0])


@pytest.mark.parametrize("is_live", [True, False])
def test_an_array_that_occurs_twice_is_stored_once_and_stays_one(is_live: bool) -> None:
    """As an observation that ends one transition and begins the next; they came back as two."""

    def build(scale: float, is_whole: bool = True) -> dict:
        frame = np.arange(5000.0) * scale
        return {"x": {"next": frame, "now": [frame]} if is_whole else {}, "y": {"first": frame}}

    slot = stage(build(2.0))
    assert len(slot) < 2 * 5000 * 8
    found = restore(slot, build(3.0, is_live))
    frame = found["y"]["first"]
    assert (frame == np.arange(5000.0) * 2).all()
    assert found["x"]["next"] is found["x"]["now"][0]
    assert not is_live or found["x"]["next"] is frame


def test_an_array_lies_in_memory_as_the_saved_one() -> None:
    """Its sums are rounded in the order in which it lies: an image with its channels first."""
    image = np.random.default_rng(0).random((31, 17, 3), np.float32).transpose(2, 0, 1)
    found = restore(stage({"x": {"image": image}}), {"x": {}})["x"]["image"]
    assert (found.strides, found.tobytes()) == (image.strides, image.tobytes())


def test_a_set_keeps_its_order() -> None:
    """That depends on how it was made: what is drawn from `list(seen)` would be another."""
    seen = {16, 0, 8}
    for into in ({"seen": set()}, {"seen": None}):
        assert list(restore(stage({"seen": seen}), into)["seen"]) == list(seen)


def test_an_expanded_buffer_of_a_module_gets_memory_of_its_own() -> None:
    """Nothing could be written to it: it used to be saved, and every restore failed."""

    def build() -> torch.nn.Module:
        module = torch.nn.Linear(2, 2)
        module.register_buffer("token", torch.rand(1, 3).expand(4, 3))
        return module

    saved, live = build(), build()
    restore(stage({"model": saved}), {"model": live})
    assert torch.equal(live.token, saved.token)
    assert torch.equal(live.weight, saved.weight)


def test_restore_into_the_meta_device_is_refused() -> None:
    """A module without data cannot take any; silence would leave it without."""
    slot = stage({"model": torch.nn.Linear(2, 2)})
    with pytest.raises(RestoreError, match="to_empty"):
        restore(slot, {"model": torch.nn.Linear(2, 2, device="meta")})


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
def test_restore_into_a_file_that_is_mapped_to_be_read_is_refused_by_name(tmp_path) -> None:
    """The process used to end with SIGSEGV; memory that is mapped writable is filled."""
    np.zeros(3).tofile(tmp_path / "features")
    files = (np.memmap(tmp_path / "features", np.float64, mode) for mode in ("r+", "r"))
    mapped, readable = map(torch.from_numpy, files)
    saved = torch.rand(3, dtype=torch.float64)
    slot = stage({"x": {"features": saved}})
    restore(slot, {"x": {"features": mapped}})
    assert torch.equal(mapped, saved)
    with pytest.raises(RestoreError, match=r"x\.features .*read-only"):
        restore(slot, {"x": {"features": readable}})


def test_saved_and_live_containers_of_other_forms() -> None:
    """A list where a dictionary is now, and the other way round: what was saved is brought back."""
    slot = stage({"a": {"x": [torch.ones(2)]}, "b": [{"y": torch.zeros(1)}]})
    live = {"a": {"x": {"k": torch.zeros(2)}}, "b": [[torch.ones(1)], torch.ones(1)]}
    restore(slot, live)
    assert torch.equal(live["a"]["x"][0], torch.ones(2))
    assert torch.equal(live["b"][0]["y"], torch.zeros(1))


def test_checksums_are_taken_of_the_tensors_and_fit_the_slot():
    """Of chunks with one tensor, with parts of several, and with the header."""
    sizes = (1, 1 << 18, 3, 1 << 16, 1000, 1 << 19)
    weights = [torch.randn(size) for size in sizes]
    slot, writer = slot_and_writer({"weights": weights})
    writer.copy_now(frozenset({"weights.3"}))
    assert writer.copy_rest() == checksum(slot)
    assert restore(slot, {"weights": []})["weights"][5].equal(weights[5])


def test_a_write_that_torch_does_not_count_gets_no_checksum_that_fits(monkeypatch):
    """A few elements, that no sample shows, after they are copied: whoever has it refuses it."""
    weights = torch.zeros(1 << 19)
    slot, writer = slot_and_writer({"weights": weights})
    move, array = moving.move, weights.numpy()

    def move_and_write(target, source, size_bytes):
        move(target, source, size_bytes)
        array[140_000:140_008] += 1

    monkeypatch.setattr(moving, "move", move_and_write)
    writer.copy_now(frozenset())
    assert writer.copy_rest() != checksum(slot)
