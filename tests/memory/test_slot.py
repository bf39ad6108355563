"""What memory is free: the machine's, or what its control groups leave."""

import pytest

from twinckpt.memory.slot import available_bytes

MIB = 1 << 20
UNLIMITED = 2**63 - 4096  # what a control group of version 1 without a limit says


@pytest.fixture
def machine(tmp_path):
    """Files as those that the kernel shows of a process's control groups."""

    def made(membership, groups):
        (tmp_path / "self").write_text(membership)
        for name, content in groups.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(f"{content}\n")
        return tmp_path, tmp_path / "self"

    return made


@pytest.mark.parametrize(
    ("membership", "folder", "limit", "used", "no_limit", "prefix"),
    [
        ("0::/pod/job\n", "", "memory.max", "memory.current", "max", ""),
        (
            "9:cpu,cpuacct:/other\n4:memory:/pod/job\n1:name=systemd:/other\n0::/other\n",
            "memory/",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            UNLIMITED,
            "total_",
        ),
    ],
    ids=["v2", "v1"],
)
def test_the_tightest_control_group_around_a_process_says_what_is_free(
    membership, folder, limit, used, no_limit, prefix, machine
):
    """Its own group, one around that, or the only one that a container is shown.

    What only caches files is free: a job that has read much has none other left.
    """
    files = {
        f"{folder}pod/job/{limit}": no_limit,
        f"{folder}pod/job/{used}": 3 * MIB,
        f"{folder}other/{limit}": MIB,
        f"{folder}other/{used}": 0,
    }
    free = available_bytes(*machine(membership, files))
    assert free > 100 * MIB
    around = {f"{folder}pod/{limit}": 20 * MIB, f"{folder}pod/{used}": 4 * MIB}
    assert available_bytes(*machine(membership, around)) == 16 * MIB
    own = {f"{folder}pod/job/{limit}": 5 * MIB}
    assert available_bytes(*machine(membership, own)) == 2 * MIB
    shown = {f"{folder}{limit}": 5 * MIB, f"{folder}{used}": 4 * MIB}
    assert available_bytes(*machine(membership, shown)) == MIB
    full = {f"{folder}pod/{used}": 21 * MIB}
    assert available_bytes(*machine(membership, full)) == 0
    caches = f"cache 9\n{prefix}active_file {MIB}\n{prefix}inactive_file {MIB // 2}"
    assert available_bytes(*machine(membership, {f"{folder}pod/memory.stat": caches})) == MIB // 2


def test_without_control_groups_the_machine_says_what_is_free(tmp_path):
    """As where none are mounted."""
    assert available_bytes(tmp_path, tmp_path / "self") > 100 * MIB
