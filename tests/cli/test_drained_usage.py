"""`import` and `export` of what is not there, not theirs, or cannot be written: one line each."""

import json
import os
import signal
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp

from twinckpt.checkpointer.assemble import one_shard
from twinckpt.checkpointer.reading import SlotReader
from twinckpt.checkpointer.state import TrainingState
from twinckpt.cli import main
from twinckpt.memory import drained as storage
from twinckpt.memory.drained import (
    drained_steps,
    finish_step,
    load_drained,
    shard_path,
    step_directory,
    write_shard,
)
from twinckpt.memory.seal import Seal

INSPECT = "import sys; from twinckpt.cli import main; sys.exit(main())"


def is_told(capsys, arguments, message):
    """Whether a command fails with one line that says this."""
    status = main([str(argument) for argument in arguments])
    lines = capsys.readouterr().err.splitlines()
    return status in (1, 2) and len(lines) == 1 and message in lines[0]


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.pt"
    torch.save({"model": {"weight": torch.ones(2)}}, path)
    return path


@pytest.fixture
def drained(saved, tmp_path):
    """A drain directory with step 1 of one rank."""
    assert main(["import", str(saved), str(tmp_path / "drained"), "--step", "1"]) == 0
    return tmp_path / "drained"


def restore(directory, state):
    """Put an imported step 1 into a state, as a job of one rank does."""
    seal, data = load_drained(Path(directory), 1, 0)
    reader = SlotReader(data, seal.chunk_bytes)
    TrainingState(state).restore(reader.metadata["state"], reader)


def test_a_folder_that_is_no_checkpoint_is_not_imported(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    arguments = ["import", tmp_path / "empty", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "no DCP checkpoint: there is no .metadata in it")


@pytest.mark.parametrize("name", [1, "$", "\ud800\udc00"])
def test_a_name_that_no_part_of_a_state_can_have_is_not_imported(name, tmp_path, capsys):
    """Nothing could be made of it again."""
    torch.save({name: torch.ones(1)}, tmp_path / "odd.pt")
    arguments = ["import", tmp_path / "odd.pt", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "not a mapping of names")


def test_pickled_objects_are_not_imported(tmp_path, capsys):
    torch.save({"model": object()}, tmp_path / "odd.pt")
    arguments = ["import", tmp_path / "odd.pt", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "no checkpoint of tensors and plain values")


def test_what_cannot_be_imported_is_named_without_torchs_advice(tmp_path, capsys):
    """It speaks of options that this command does not have, and its first line ends in 'two'."""
    torch.save({"rate": Fraction(1, 3)}, tmp_path / "odd.pt")
    arguments = ["import", tmp_path / "odd.pt", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "plain values: there is a fractions.Fraction in it")
    for junk in (b"", b"\x7fELF" + bytes(100)):
        (tmp_path / "odd.pt").write_bytes(junk)
        assert is_told(capsys, arguments, "plain values: it is no torch.save file")


def test_an_optimizer_that_is_none_is_imported_as_what_it_is(tmp_path):
    """Its names alone do not make it one."""
    torch.save({"odd": {"state": [1], "param_groups": 3}}, tmp_path / "odd.pt")
    arguments = ["import", tmp_path / "odd.pt", tmp_path / "out", "--step", 1]
    assert main([str(argument) for argument in arguments]) == 0


def test_a_dcp_checkpoint_with_damaged_metadata_is_not_imported(tmp_path, capsys):
    """What torch raises then is no Exception."""
    dcp.save({"weight": torch.ones(4)}, checkpoint_id=tmp_path / "dcp")
    capsys.readouterr()
    metadata = tmp_path / "dcp" / ".metadata"
    metadata.write_bytes(metadata.read_bytes()[:-20])
    arguments = ["import", tmp_path / "dcp", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "no checkpoint of tensors and plain values")


def test_a_step_below_zero_is_not_imported(saved, tmp_path, capsys):
    """No job could resume from it."""
    arguments = ["import", saved, tmp_path / "out", "--step", -3]
    assert is_told(capsys, arguments, "--step -3: a step is at least 0")
    assert not (tmp_path / "out").exists()


def test_a_target_that_cannot_be_written_is_named(saved, tmp_path, capsys):
    """A file where a folder is needed."""
    arguments = ["import", saved, saved / "out", "--step", 1]
    assert is_told(capsys, arguments, f"{saved}/out cannot be written to")
    assert main(["import", str(saved), str(tmp_path / "drained"), "--step", "1"]) == 0
    capsys.readouterr()
    for kind in ("torch", "dcp"):
        arguments = ["export", tmp_path / "drained", saved / "out", "--format", kind]
        assert is_told(capsys, arguments, f"{saved}/out cannot be written")
    assert drained_steps(tmp_path / "drained") == (1,)


@pytest.mark.parametrize("step", [2**63, 2**70])
def test_a_step_that_no_seal_holds_is_not_imported(step, saved, tmp_path, capsys):
    assert is_told(capsys, ["import", saved, tmp_path / "out", "--step", step], "below 2^63")
    assert not (tmp_path / "out").exists()


def test_nothing_is_not_imported(tmp_path, capsys):
    """No export could make anything of it."""
    torch.save({}, tmp_path / "none.pt")
    arguments = ["import", tmp_path / "none.pt", tmp_path / "out", "--step", 1]
    assert is_told(capsys, arguments, "there is nothing in it")


@pytest.mark.parametrize("arguments", [["verify", "no://x"], ["import", "a", "no://x", "--step=1"]])
def test_a_place_without_a_driver_says_what_is_missing(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "argument directory: no://…: " in capsys.readouterr().err


def test_a_reader_that_has_seen_enough_is_no_error(saved, tmp_path):
    """As in `twinckpt inspect DIR | head -1`."""
    assert main(["import", str(saved), str(tmp_path / "out"), "--step", "1"]) == 0
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-c", INSPECT, "inspect", str(tmp_path / "out")]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.stderr == ""
    assert done.returncode == 128 + signal.SIGPIPE


def test_a_dcp_export_that_fails_says_why_and_leaves_nothing(tmp_path, capsys):
    """DCP joins names with dots; its own message is a list of ranks."""
    state = {"a.b": {"c": torch.ones(1)}, "a": {"b.c": torch.zeros(1)}}
    torch.save(state, tmp_path / "saved.pt")
    main(["import", str(tmp_path / "saved.pt"), str(tmp_path / "drained"), "--step", "1"])
    capsys.readouterr()
    status = main(["export", str(tmp_path / "drained"), str(tmp_path / "out"), "--format", "dcp"])
    assert status == 1
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.endswith("out cannot be written: duplicated flatten key a.b.c")
    assert {path.name for path in tmp_path.iterdir()} == {"saved.pt", "drained"}


def test_a_directory_that_may_not_be_read_is_not_called_empty(saved, tmp_path, capsys):
    """Another user's; for root this test becomes one."""
    drained = tmp_path / "drained"
    assert main(["import", str(saved), str(drained), "--step", "1"]) == 0
    assert main(["verify", str(drained)]) == 0
    capsys.readouterr()
    drained.chmod(0)
    user = os.geteuid()
    os.seteuid(user or 65534)
    try:
        assert is_told(capsys, ["verify", drained], "Permission denied")
    finally:
        os.seteuid(user)
        drained.chmod(0o700)


@pytest.mark.parametrize("num_ranks", [2, 10**12])
def test_a_manifest_of_more_ranks_than_there_are_seals_is_told_in_one_line(
    num_ranks, drained, capsys
):
    """Damage can make it any number; each missing rank used to get a line of its own."""
    (step_directory(drained, 1) / "manifest.json").write_text(
        f'{{"step": 1, "ticket": 1, "world_size": {num_ranks}}}'
    )
    capsys.readouterr()
    assert main(["verify", str(drained)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert f"{num_ranks} ranks, and {num_ranks - 1} of them have no seal" in lines[0]
    assert lines[1:] == [
        "rank 0: the shard is of another checkpoint",
        f"step 1: 0 of {num_ranks} shards intact",
    ]


def test_a_file_that_goes_on_after_its_shard_is_refused_and_a_restore_reads_what_was_sealed(
    drained, tmp_path, capsys
):
    """As `verify` does; no reader of safetensors takes such a file either."""
    with shard_path(drained, 1, 0).open("ab") as file:
        file.write(b"more")
    capsys.readouterr()
    assert is_told(capsys, ["inspect", drained], "cut off the rest")
    assert is_told(capsys, ["export", drained, tmp_path / "out"], "cut off the rest")
    assert not (tmp_path / "out").exists()
    load_drained(drained, 1, 0)


def test_tied_weights_are_one_tensor_in_an_exported_file(tmp_path):
    """As they are where `torch.save` writes the model itself."""
    weight = torch.rand(3, 2)
    state = {"model": {"embedding": weight, "head": weight}, "best": {"head": weight}}
    torch.save({**state, "apart": weight.clone()}, tmp_path / "saved.pt")
    drained, exported = str(tmp_path / "drained"), tmp_path / "exported.pt"
    assert main(["import", str(tmp_path / "saved.pt"), drained, "--step", "1"]) == 0
    assert main(["export", drained, str(exported)]) == 0
    found = torch.load(exported, weights_only=True)
    assert torch.equal(found["model"]["embedding"], weight)
    assert found["model"]["head"] is found["model"]["embedding"]
    assert found["best"]["head"] is found["model"]["embedding"]
    assert found["apart"].data_ptr() != found["model"]["head"].data_ptr()


@pytest.mark.parametrize("output", ["an ASCII locale", "closed"])
def test_an_output_that_takes_no_arrow_or_nothing_is_no_failure(output, saved, tmp_path):
    """The checkpoint was made, and yet the exit status used to say that it was not."""
    arguments = ["import", str(saved), str(tmp_path / "out"), "--step=1"]
    command = [sys.executable, "-c", INSPECT, *arguments]
    if output == "closed":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert (ran.returncode, ran.stderr) == (0, "")


def crafted(directory, change):
    """Replace step 1 by one of another header, whose seal is right."""
    _, data = load_drained(directory, 1, 0)
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(bytes(data[8 : 8 + length]))
    metadata = json.loads(header["__metadata__"]["twinckpt"])
    change(header, metadata)
    header["__metadata__"]["twinckpt"] = json.dumps(metadata)
    text = json.dumps(header).encode()
    data = memoryview(struct.pack("<Q", len(text)) + text + data[8 + length :])
    storage.write_shard(
        directory, Seal.of(data, rank=0, ticket=1, step=1, home=0, world_size=1), data
    )
    assert storage.finish_step(directory, step=1, ticket=1, world_size=1)


def weight_is(**facts):
    """A change of what the state says of its tensor."""
    return lambda header, metadata: metadata["state"]["model"]["weight"].update(facts)


def extra_is(node):
    """A change that adds a value to the state."""
    return lambda header, metadata: metadata["state"].update(extra=node)


@pytest.mark.parametrize(
    "change",
    [
        lambda header, metadata: metadata.pop("state"),
        lambda header, metadata: metadata.update(state=[]),
        lambda header, metadata: metadata.update(state={"$": "tuple", "items": []}),
        lambda header, metadata: metadata.update(tensors=[]),
        lambda header, metadata: metadata["tensors"].update({"model.weight": ["nn", [2], "cpu"]}),
        lambda header, metadata: metadata["tensors"]["model.weight"].__setitem__(1, [-1, -2]),
        lambda header, metadata: metadata["tensors"]["model.weight"].__setitem__(1, [2.0]),
        lambda header, metadata: header["model.weight"].update(data_offsets=[0, 10**30]),
        lambda header, metadata: header["model.weight"].update(data_offsets=[-8, 0]),
    ],
)
def test_a_header_that_describes_no_tensors_is_refused(change, drained, tmp_path, capsys):
    """Its checksum is right, as if it had been forged."""
    crafted(drained, change)
    capsys.readouterr()
    assert is_told(capsys, ["inspect", drained], "not a checkpoint of twinckpt")
    assert is_told(capsys, ["export", drained, tmp_path / "out"], "not a checkpoint of twinckpt")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change",
    [
        weight_is(tensor=["model.weight"]),
        weight_is(placements=["S(0)"]),
        weight_is(placements=[], mesh=[1], global_shape=[2]),
        weight_is(placements=["S(7)"], mesh=[1], global_shape=[2]),
        weight_is(placements=[3], mesh=[1], global_shape=[2]),
        weight_is(placements=["R", "R"], mesh=[-1, -1], global_shape=[2]),
        extra_is({"$": "tensor"}),
        extra_is({"$": "float", "bits": "00"}),
        extra_is({"$": "dtype", "name": "load"}),
        extra_is({"$": "device", "name": "nowhere"}),
        extra_is({"$": "set", "items": [[1]]}),
        extra_is({"$": "dict", "items": [1]}),
        extra_is({"$": "size", "items": None}),
        extra_is({"$": "ndarray", "tensor": "model.weight", "dtype": "O", "shape": [1]}),
        extra_is({"$": "ndarray", "tensor": "model.weight", "dtype": "<f4", "shape": [-2]}),
    ],
)
def test_a_state_that_cannot_be_put_together_is_told_in_one_line(change, drained, tmp_path, capsys):
    """An array of objects would even take its bytes as addresses."""
    crafted(drained, change)
    capsys.readouterr()
    assert is_told(capsys, ["export", drained, tmp_path / "out"], "cannot be put together")
    assert not (tmp_path / "out").exists()


SEALS_READ = """
import sys
from twinckpt.cli import main
seals = []
sys.addaudithook(
    lambda event, what: seals.append(what[0])
    if event == "open" and str(what[0]).endswith(".seal") else None
)
assert main() == 0
print(len(seals), file=sys.stderr)
"""


@pytest.mark.parametrize("more", [["inspect"], ["export", "out.pt"]])
def test_a_seal_is_read_once(more, drained, tmp_path):
    """What says that a shard is intact is also what says how long it is."""
    command = [sys.executable, "-c", SEALS_READ, more[0], str(drained), *more[1:]]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert ran.stderr == "1\n"


@pytest.mark.parametrize("form", ["torch", "dcp"])
def test_a_tensor_of_the_loop_is_trained_on_after_an_export_and_an_import(form, tmp_path):
    """Such files say it of few tensors: a learned temperature, say, used to be silently frozen."""
    saved = {
        "alpha": torch.rand(2, requires_grad=True),
        "more": {"p": torch.nn.Parameter(torch.rand(2))},
    }
    torch.save(saved, tmp_path / "first.pt")
    first, second = str(tmp_path / "first"), str(tmp_path / "second")
    assert main(["import", str(tmp_path / "first.pt"), first, "--step", "1"]) == 0
    assert main(["export", first, str(tmp_path / "whole"), "--format", form]) == 0
    assert main(["import", str(tmp_path / "whole"), second, "--step", "1"]) == 0
    live = {
        "alpha": torch.zeros(2, requires_grad=True),
        "more": {"p": torch.nn.Parameter(torch.zeros(2))},
    }
    frozen = {"alpha": torch.zeros(2), "more": {"p": torch.nn.Parameter(torch.zeros(2), False)}}
    for state, is_trained in ((live, True), (frozen, False)):
        restore(second, state)
        assert torch.equal(state["alpha"], saved["alpha"])
        assert state["alpha"].requires_grad == state["more"]["p"].requires_grad == is_trained


def test_an_imported_tensor_keeps_its_bits(tmp_path):
    """Torch's own copy makes ones of all true values."""
    saved = torch.tensor([0, 1, 2, 255], dtype=torch.uint8)
    torch.save({"x": saved.view(torch.bool)}, tmp_path / "saved.pt")
    assert main(["import", str(tmp_path / "saved.pt"), str(tmp_path / "out"), "--step", "1"]) == 0
    live = torch.zeros(4, dtype=torch.bool)
    restore(tmp_path / "out", {"x": live})
    assert torch.equal(live.view(torch.uint8), saved)


def test_an_export_that_takes_trust_to_load_says_so(tmp_path, capsys):
    """Torch has plain values of its own, fewer than a checkpoint may hold."""
    place = str(tmp_path / "drained")
    write_shard(Path(place), *one_shard({"x": frozenset({"a"})}, 1, 1))
    assert finish_step(Path(place), 1, 1, 1)
    assert main(["export", place, str(tmp_path / "whole.pt")]) == 0
    assert "with weights_only=False only: there is a frozenset in it" in capsys.readouterr().out


def test_a_type_that_torch_cannot_export_is_told_in_one_line(tmp_path, capsys):
    place = tmp_path / "drained"
    write_shard(place, *one_shard({"x": torch.ones(2, dtype=torch.uint8).view(torch.uint4)}, 1, 1))
    assert finish_step(place, 1, 1, 1)
    arguments = ["export", place, tmp_path / "whole.pt"]
    assert is_told(capsys, arguments, "dtype torch.uint4 is not recognized")
