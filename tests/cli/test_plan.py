"""`twinckpt plan` with the published settings of real clusters."""

import pytest

from twinckpt.cli import main

P4D = (
    "--machines 16 --ranks-per-machine 8 --bytes-per-rank 9.4GiB --network-gbit-s 400 "
    "--storage-gib-s 2.33 --memory-gib-s 50 --iteration-s 62 --failures-per-day 0.24 "
    "--memory-gib 1072"
)
# Llama 3 405B (arXiv:2407.21783): 419 failures in 54 days, 78 % hardware, 2 TB/s of storage.
LLAMA3 = (
    "--machines 2048 --ranks-per-machine 8 --bytes-per-rank 0.3GB --network-gbit-s 3200 "
    "--storage-gib-s 1860 --memory-gib-s 100 --iteration-s 10 --failures-per-day 7.76 "
    "--hardware-share 0.78 --racks 1024"
)


def call(text: str) -> int:
    """Run the command as the command line would."""
    return main(["plan", *text.split()])


def test_the_papers_cluster(capsys):
    """Every iteration, two replicas, with the memory that takes and what dominates."""
    assert call(P4D) == 0
    out = capsys.readouterr().out
    assert "placement=group replicas=2: checkpoint every iteration" in out
    assert "300.8 GiB" in out
    assert "9.3 min" in out  # storage alone: every nine iterations
    assert "what dominates is replacement" in out


def test_llama_3_comes_out_above_what_was_reported(capsys):
    """More than 90 % effective training time was reported, with some stops by hand."""
    assert call(LLAMA3) == 0
    first = capsys.readouterr().out.splitlines()[0]
    goodput_percent = float(first.split("goodput ")[1].split(" ")[0])
    assert 90 < goodput_percent < 100


def test_where_storage_is_enough_it_says_so(capsys):
    """Small shards and 2 TB/s of storage leave little for memory to gain."""
    call(LLAMA3)
    assert "storage alone would do as well here" in capsys.readouterr().out


def test_a_forced_number_of_replicas_is_kept(capsys):
    """Three replicas of sixteen machines need the mixed placement."""
    assert call(P4D + " --replicas 3") == 0
    assert capsys.readouterr().out.startswith("placement=mixed replicas=3")


def test_impossible_inputs_end_in_one_line(capsys):
    """Status 2, the reason, nothing else."""
    assert call(P4D + " --memory-gib 64") == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "2 replicas in 2 slots need 300.8 GiB" in said.err


@pytest.mark.parametrize(
    ("option", "reason"),
    [
        ("--replicas 0", "num_replicas=0: must be in [2, num_machines=16]"),
        ("--memory-gib nan", "memory_bytes=nan: must be at least 0"),
    ],
)
def test_a_value_that_is_none_is_not_left_out(option, reason, capsys):
    """It is refused, not taken as if the option were not there."""
    assert call(f"{P4D} {option}") == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "option", ["--iteration-s 1e-308", "--stall-s 1e308", "--network-gbit-s 1e-308"]
)
def test_figures_of_no_cluster_end_in_one_line(option, capsys):
    """They overflow somewhere."""
    status = call(f"{P4D} {option}")
    said = capsys.readouterr().err
    assert (status, said.count("\n")) in [(0, 0), (2, 1)]


@pytest.mark.parametrize("size", ["lots", "9.4GiBs", "1e", "-3GiB"])
def test_a_size_that_is_none_is_refused(size, capsys):
    """With an example of what would be one."""
    with pytest.raises(SystemExit) as stopped:
        call(P4D.replace("9.4GiB", size))
    assert stopped.value.code == 2
    assert "bytes-per-rank" in capsys.readouterr().err


def test_the_plot_is_drawn(tmp_path, capsys):
    """As SVG, with the causes of waste in it."""
    path = tmp_path / "plan.svg"
    assert call(f"{P4D} --out {path}") == 0
    assert path.read_text().lstrip().startswith("<?xml")
    assert str(path) in capsys.readouterr().out


def test_a_plot_that_cannot_be_written_ends_in_one_line(tmp_path, capsys):
    """The plan itself is there all the same."""
    assert call(f"{P4D} --out {tmp_path / 'none' / 'plan.svg'}") == 2
    said = capsys.readouterr()
    assert "expected goodput" in said.out
    assert said.err.splitlines() == [
        f"twinckpt plan: --out {tmp_path}/none/plan.svg: No such file or directory"
    ]


def test_an_unknown_kind_of_plot_is_refused_before_anything_is_drawn(tmp_path, capsys):
    """The suffix decides."""
    assert call(f"{P4D} --out {tmp_path / 'plan.xyz'}") == 2
    assert "must end in .svg" in capsys.readouterr().err
