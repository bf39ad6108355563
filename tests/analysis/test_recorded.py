"""Results of other machines are read as those of this one, whatever part of them there is."""

from pathlib import Path

from matplotlib.figure import Figure

from twinckpt.analysis import limits
from twinckpt.analysis.dataset import Dataset
from twinckpt.analysis.report import recorded_summaries

RECORDED = Path(__file__).resolve().parents[2] / "results" / "recorded"


def test_every_recorded_machine_has_metrics_and_a_name():
    found = recorded_summaries(RECORDED)
    assert found.keys() == {path.name for path in RECORDED.iterdir()}
    assert all(summary["metrics"] and summary["hardware"] for summary in found.values())


def test_a_state_on_a_gpu_has_metrics_of_its_own():
    names = {metric["name"] for metric in recorded_summaries(RECORDED)["h100"]["metrics"]}
    assert {"device_staging_vs_pcie_x", "single_device_restore_vs_pcie_x"} <= names
    assert not {"staging_vs_memcpy_x", "agent_overhead_mib"} & names  # those are of CPU memory


def test_cases_on_a_gpu_are_shown_as_such():
    data = Dataset(RECORDED / "h100")
    titles = ["1 rank, 768 MiB each on the GPU", "4 ranks, 256 MiB each on the GPU"]
    table = limits.table(data)
    assert list(table.columns) == titles
    assert not any(table.loc["memcpy_hashed_vs_memcpy_x"])
    assert all(table.loc["device_stall_percent"])
    axis = Figure().subplots()
    limits.draw(axis, data)
    assert [line.get_label() for line in axis.get_lines()][:1] == titles[:1]
