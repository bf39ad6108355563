"""Every kind of state comes back bit for bit, or is refused by name."""

import random
import re
from collections import Counter, OrderedDict, defaultdict

import numpy as np
import pytest
import safetensors.torch
import torch
from catalogue import CARRIED, REFUSED, Counting, Pair, assert_same, restored, seeded, slot_of

from twinckpt.checkpointer.state import TrainingState
from twinckpt.errors import ConfigurationError, RestoreError, UnsupportedStateError


@pytest.mark.parametrize("name", CARRIED)
def test_a_state_comes_back_bit_for_bit_into_a_fresh_one(name):
    state = seeded(1, CARRIED[name])
    fresh = seeded(2, CARRIED[name])
    slot = slot_of(state)
    safetensors.torch.load(bytes(slot))  # others can read it
    assert_same(state, restored(slot, fresh))


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_carried_is_refused_by_name(name):
    with pytest.raises(UnsupportedStateError, match=r"x\.odd"):
        TrainingState(REFUSED[name]()).capture()


def test_values_are_restored_where_the_fresh_state_has_others():
    """Tensors of another shape, more and fewer keys."""
    state = {"x": {"a": torch.rand(3), "b": [1, torch.rand(2, requires_grad=True)]}}
    fresh = {"x": {"a": torch.rand(5), "c": 1}}
    assert_same(state, restored(slot_of(state), fresh))


def test_memory_that_is_shared_is_stored_once_and_stays_shared():
    weight = torch.rand(1000)
    slot = slot_of({"x": {"a": weight}, "y": {"b": weight, "c": [weight]}})
    assert len(slot) < 2 * weight.nbytes + 8192
    fresh = {"x": {"a": torch.zeros(1)}, "y": {}}
    restored(slot, fresh)
    assert fresh["x"]["a"] is fresh["y"]["b"] is fresh["y"]["c"][0]


@pytest.mark.parametrize("names", [("model", "optimizer", "x"), ("x", "optimizer", "model")])
def test_what_is_new_shares_the_memory_of_what_it_was_in_a_module(names):
    """As a list of weights that training makes: it used to come back as an untrained copy."""

    def build():
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
        return {"model": model, "optimizer": optimizer, "x": {"now": torch.rand(2), "more": None}}

    saved, into = seeded(1, build), seeded(2, build)
    for parameter in saved["model"].parameters():
        saved["optimizer"].state[parameter] = {"momentum_buffer": torch.rand_like(parameter)}
    bias = saved["model"].bias
    momentum = saved["optimizer"].state[bias]["momentum_buffer"]
    saved["x"]["more"] = [bias, bias.detach(), momentum, saved["x"]["now"]]
    now = into["x"]["now"]
    restored(slot_of({name: saved[name] for name in names}), {name: into[name] for name in names})
    assert_same(saved["x"], into["x"])
    bias = into["model"].bias
    momentum = into["optimizer"].state[bias]["momentum_buffer"]
    live = [tensor.data_ptr() for tensor in (bias, bias, momentum, now)]
    assert [tensor.data_ptr() for tensor in into["x"]["more"]] == live


def test_a_parameter_goes_on_being_trained_where_what_was_detached_from_it_was_saved():
    """In a list that begins with the parameters themselves: the model used to be frozen."""
    saved, fresh = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    into = {"model": fresh, "seen": [fresh.weight]}
    restored(slot_of({"model": saved, "seen": [saved.weight.detach()]}), into)
    assert fresh.weight.requires_grad
    assert not into["seen"][0].requires_grad
    assert into["seen"][0].data_ptr() == fresh.weight.data_ptr()


def test_an_array_that_is_new_is_the_live_one_that_it_was():
    array = np.random.rand(3)
    into = {"x": {"now": np.zeros(3)}}
    live = into["x"]["now"]
    restored(slot_of({"x": {"now": array, "seen": [array]}}), into)
    assert into["x"]["now"] is into["x"]["seen"][0] is live


def test_numpys_keys_have_short_names():
    """As those of `Counter(labels)`: each name used to be longer than the last, for minutes."""
    names = TrainingState({"counts": Counter(np.arange(500))}).capture().tensors
    assert max(map(len, names)) == len("the key 499 of counts")


@pytest.mark.parametrize("order", [("p", "data"), ("data", "p")])
def test_a_parameter_and_what_is_detached_from_it_are_made_as_the_two_that_they_were(order):
    """They share memory: both used to come back as whichever was first."""
    parameter = torch.nn.Parameter(torch.rand(3))
    state = {"p": parameter, "data": parameter.detach()}
    fresh = {"x": {}}
    restored(slot_of({"x": {name: state[name] for name in order}}), fresh)
    assert_same({name: state[name] for name in order}, fresh["x"])
    assert fresh["x"]["p"].data_ptr() == fresh["x"]["data"].data_ptr()


def test_two_parts_that_end_up_with_one_name_are_refused():
    linear = torch.nn.Linear
    with pytest.raises(ConfigurationError, match=r"a\.b"):
        TrainingState({"a.b": linear(1, 1), "a": {"b": linear(1, 1)}})


def test_a_container_of_parts_that_contains_itself_is_refused():
    """It used to end in a RecursionError."""
    parts = {"model": torch.nn.Linear(1, 1)}
    parts["all"] = parts
    with pytest.raises(ConfigurationError, match="contains itself"):
        TrainingState({"train": parts})


@pytest.mark.parametrize("kind", ["Parameter", "Linear"])
def test_a_part_whose_key_is_an_object_is_refused_before_anything_is_saved(kind):
    """As an optimizer for each parameter: its name held values, and no restore would find it."""
    model = torch.nn.Linear(1, 1)
    key = model.weight if kind == "Parameter" else model
    optimizers = {key: torch.optim.SGD([model.weight])}
    with pytest.raises(ConfigurationError, match=f"a {kind} as its key.*: give a list"):
        TrainingState({"model": model, "optimizers": optimizers})


def test_a_plain_value_beside_a_part_in_a_tuple_is_refused_before_anything_is_saved():
    """It used to be saved, and every restore failed."""
    with pytest.raises(ConfigurationError, match=r"train\.1 is a int in a tuple"):
        TrainingState({"train": (torch.nn.Linear(1, 1), 5)})
    state = {"train": (torch.nn.Linear(1, 1), {"epoch": 5}, torch.rand(2))}
    restored(slot_of(state), {"train": (torch.nn.Linear(1, 1), {}, torch.rand(2))})


def test_a_part_that_joins_a_nested_container_later_is_saved_too():
    state = {"models": [torch.nn.Linear(1, 1)]}
    training = TrainingState(state)
    before = training.capture().tensors.keys()
    state["models"].append(torch.nn.Linear(1, 1))
    assert training.capture().tensors.keys() - before == {"models.1.weight", "models.1.bias"}


@pytest.mark.parametrize("name", ["$", 7, "\ud83d\ude00"])
def test_a_part_that_joins_under_a_name_that_json_does_not_keep_is_refused(name):
    """It used to be saved, and no restore could read the checkpoint."""
    state = {"model": torch.nn.Linear(1, 1)}
    training = TrainingState(state)
    state[name] = torch.nn.Linear(1, 1)
    with pytest.raises(ConfigurationError, match="names of the state's parts"):
        training.capture()


def test_a_nested_name_that_json_does_not_keep_is_refused():
    with pytest.raises(ConfigurationError, match="names of the state's parts"):
        TrainingState({"heads": {"\ud83d\ude00": torch.nn.Linear(1, 1)}})


def test_parts_are_found_in_containers_of_every_type():
    """They stay where they are: only what holds plain values has to be of a type that is saved."""

    def build():
        heads = OrderedDict(a=torch.nn.Linear(1, 1), loss=random.random())
        counters = defaultdict(Counting, seen=Counting())
        return {
            "heads": heads,
            "more": {"counters": counters, "pair": Pair(torch.nn.Linear(1, 1), [2.5])},
        }

    saved, fresh = seeded(1, build), seeded(2, build)
    heads = fresh["heads"]
    restored(slot_of(saved), fresh)
    assert_same(saved["heads"], heads)
    assert_same(saved["more"]["counters"], fresh["more"]["counters"])


def test_a_nested_container_that_is_replaced_is_saved_as_it_is_now():
    """The old one's model used to be saved silently from then on."""
    state = {"train": {"model": torch.nn.Linear(1, 1), "epoch": 1}}
    training = TrainingState(state)
    training.capture()
    state["train"] = {"model": torch.nn.Linear(1, 1), "epoch": 2}
    found = training.capture().originals["train.model.weight"]
    assert found is state["train"]["model"].weight


@pytest.mark.parametrize("container", [[], [1], {"models": []}])
def test_a_container_of_plain_values_may_get_a_part_later(container):
    """As a list of models that grows; each later save used to fail."""
    state = {"progress": container}
    training = TrainingState(state)
    training.capture()
    inner = container if isinstance(container, list) else container["models"]
    inner.append(torch.nn.Linear(1, 1))
    assert len(training.capture().tensors) == 2


@pytest.mark.parametrize(
    "live", [torch.zeros(5), torch.zeros(3, dtype=torch.int64), torch.zeros(1).expand(3)]
)
def test_a_tensor_that_is_a_part_takes_another_shape_and_type(live):
    """It stays the same object, which the training may hold by a variable."""
    saved = torch.rand(3)
    restored(slot_of({"x": saved}), {"x": live})
    assert_same(saved, live)


@pytest.mark.parametrize("live", [torch.zeros(5), torch.zeros(3, dtype=torch.int64)])
def test_a_tensor_that_is_a_part_is_trained_if_it_was(live):
    """One of another shape or type used to come back untrained, or not at all."""
    saved, trained = torch.rand(3), torch.rand(3, requires_grad=True)
    restored(slot_of({"x": trained}), {"x": live})
    assert_same(trained, live)
    for odd in (torch.arange(2), saved):
        restored(slot_of({"x": odd}), {"x": live})
        assert_same(odd, live)


@pytest.mark.parametrize("names", [("part", "other"), ("other", "part")])
def test_a_tensor_that_is_a_part_leaves_alone_what_it_is_elsewhere(names):
    """It used to take the shape of the saved one, in the other place as well."""
    live = torch.zeros(3)
    saved = {"part": torch.rand(2), "other": {"t": torch.rand(3)}}
    fresh = {"part": live, "other": {"t": live}}
    fresh = restored(slot_of(saved), {name: fresh[name] for name in names})
    assert_same(saved, {name: fresh[name] for name in saved})


def test_a_lazy_module_gets_its_shape_from_the_checkpoint():
    def build():
        return torch.nn.Sequential(torch.nn.LazyLinear(2), torch.nn.LazyBatchNorm1d())

    trained, fresh = build(), build()
    trained(torch.rand(4, 3))
    restored(slot_of({"model": trained}), {"model": fresh})
    assert_same(trained, fresh)
    assert fresh(torch.rand(4, 3)).shape == (4, 2)


def _optimizer(num_parameters):
    return torch.optim.SGD([torch.rand(2, requires_grad=True) for _ in range(num_parameters)])


@pytest.mark.parametrize(
    ("saved", "live"),
    [
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 3)),
        (torch.nn.Linear(2, 2), torch.nn.Linear(2, 2, bias=False)),
        (torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2)),
        (_optimizer(1), _optimizer(2)),
        (5, torch.Generator()),
        (5, np.random.default_rng(1)),
        (np.random.default_rng(1), np.random.Generator(np.random.MT19937(1))),
    ],
)
def test_a_part_that_has_become_another_one_is_named(saved, live):
    """A model that was changed between two runs."""
    with pytest.raises(RestoreError, match=r"x does not take what the checkpoint has for it"):
        restored(slot_of({"x": saved}), {"x": live})


@pytest.mark.parametrize(
    ("live", "reason"),
    [
        (torch.nn.Conv2d(3, 4, 2), "weight had the shape [4, 3, 1, 1], here it has [4, 3, 2, 2]"),
        (torch.nn.Conv2d(3, 4, 1, bias=False), "nothing is called bias here"),
        (torch.nn.utils.weight_norm(torch.nn.Conv2d(3, 4, 1)), "nothing was saved of weight_g"),
        (_optimizer(2), "it had groups of [4] parameters, here it has [2]"),
    ],
)
def test_where_a_part_has_become_another_one_nothing_is_overwritten(live, reason):
    """A job that then starts from scratch must not start with parts of the checkpoint."""

    def build():
        model = torch.nn.Sequential(torch.nn.BatchNorm2d(3), torch.nn.Conv2d(3, 4, 1))
        return {"a": model.to(memory_format=torch.channels_last), "z": [np.random.rand(2)]}

    saved, fresh = seeded(1, build), seeded(2, build)
    was_optimizer = isinstance(live, torch.optim.Optimizer)
    odd = torch.optim.SGD(saved["a"].parameters()) if was_optimizer else saved["a"][1]
    with pytest.raises(RestoreError, match=rf"x does not .*{re.escape(reason)}.* Nothing is over"):
        restored(slot_of({**saved, "x": odd}), {**fresh, "x": live})
    assert_same(seeded(2, build), fresh)


def _pair(is_tied):
    pair = torch.nn.ModuleList(torch.nn.Linear(2, 2, bias=False) for _ in range(2))
    if is_tied:
        pair[1].weight = pair[0].weight
    return pair


def test_weights_that_were_untied_are_not_restored_into_tied_ones():
    """Both used to get the values of one of them silently."""
    fresh = seeded(2, lambda: _pair(True))
    with pytest.raises(RestoreError, match=r"x\.0\.weight and x\.1\.weight are one tensor here"):
        restored(slot_of({"x": seeded(1, lambda: _pair(False))}), {"x": fresh})
    assert_same(fresh, seeded(2, lambda: _pair(True)))


def test_weights_that_were_untied_and_alike_are_restored_into_tied_ones():
    saved, fresh = _pair(False), _pair(True)
    saved[1].load_state_dict(saved[0].state_dict())
    assert_same(saved, restored(slot_of({"x": saved}), {"x": fresh})["x"])


@pytest.mark.parametrize("names", [("model", "optimizer"), ("optimizer", "model")])
def test_optimizer_state_that_begins_as_the_parameter_is_restored_beside_it(names):
    """If the optimizer came first, an average that began as the weights used to become them."""

    def build(is_new):
        model = torch.nn.Linear(2, 2, bias=False)
        optimizer = torch.optim.SGD(model.parameters())
        weight = model.weight
        optimizer.state[weight] = {"mean": weight.detach() if is_new else torch.rand(2, 2)}
        state = {"model": model, "optimizer": optimizer}
        return {name: state[name] for name in names}

    saved = build(is_new=False)
    assert_same(saved, restored(slot_of(saved), build(is_new=True)))


def test_a_module_of_torch_that_changes_its_shapes_to_what_it_loads_may_do_so():
    """Quantization observers begin with shapes that their first batch changes."""
    observer = pytest.importorskip("torch.ao.quantization").PerChannelMinMaxObserver
    saved, fresh = observer(), observer()
    saved(torch.rand(3, 5))
    assert saved.min_val.shape != fresh.min_val.shape
    assert_same(saved, restored(slot_of({"observer": saved}), {"observer": fresh})["observer"])


def _called_from(depth, function):
    return function() if depth == 0 else _called_from(depth - 1, function)


@pytest.mark.parametrize("wrap", [lambda x: [x], lambda x: (x,), lambda x: OrderedDict(k=x)])
def test_what_is_taken_of_nested_values_is_restored_by_functions_further_down_too(wrap):
    """As a callback is: the copies used to be dropped as damaged, one after another."""
    value = 1
    while True:
        try:
            slot = slot_of({"x": wrap(value)})
        except UnsupportedStateError:
            break
        value = wrap(value)
    fresh = {"x": wrap(None)}
    _called_from(150, lambda: restored(slot, fresh))
    # Not compared: that would take more calls.
    assert type(fresh["x"]) is type(value)
