"""A slot: anonymous memory that processes of one machine share by file descriptor.

The kernel frees it when the last process that has it ends, so nothing stays behind after
`kill -9`, and it does not count against the size of /dev/shm.
"""

import contextlib
import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from twinckpt.errors import OutOfMemoryError

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module has no name for it
_LIBC = ctypes.CDLL(None)
_GROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")
# For each version of control groups: controller, folder, the files of the limit and of the usage,
# and the prefix of those statistics that include the groups below.
_GROUP_FILES = (
    ("", "", "memory.max", "memory.current", ""),
    ("memory", "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_"),
)


class Slot:
    """A writable buffer of fixed capacity behind a file descriptor."""

    def __init__(self, fd: int, capacity_bytes: int) -> None:
        self.fd = fd
        self.capacity_bytes = capacity_bytes
        self._map = mmap.mmap(fd, capacity_bytes, flags=mmap.MAP_SHARED)
        _populate(self._map)
        self.buffer = memoryview(self._map)

    @classmethod
    def allocate(cls, capacity_bytes: int) -> "Slot":
        """Take memory from the kernel now, so that no later write can fail or fault it in.

        Raises OutOfMemoryError, before the kernel has to kill anything, if it does not fit.
        """
        capacity_bytes = max(mmap.PAGESIZE, -(-capacity_bytes // mmap.PAGESIZE) * mmap.PAGESIZE)
        with contextlib.ExitStack() as otherwise:
            try:
                free_bytes = available_bytes()
                if capacity_bytes > free_bytes:
                    raise OutOfMemoryError(
                        f"a slot of {capacity_bytes >> 20} MiB does not fit into the "
                        f"{free_bytes >> 20} MiB of memory that are free; use fewer replicas or "
                        "slots, shard the state over more ranks, or give the machine more memory"
                    )
                fd = os.memfd_create("twinckpt-slot", os.MFD_CLOEXEC)
                otherwise.callback(os.close, fd)
                os.ftruncate(fd, capacity_bytes)
                slot = cls(fd, capacity_bytes)
                os.posix_fallocate(fd, 0, capacity_bytes)  # what the kernel did not populate
            except OSError as error:
                raise OutOfMemoryError(
                    f"the kernel refused a slot of {capacity_bytes >> 20} MiB: {error.strerror}"
                ) from error
            otherwise.pop_all()
        return slot

    def close(self) -> None:
        """Give the memory back; what a thread still looks at goes with its last view."""
        self.buffer.release()
        with contextlib.suppress(BufferError):
            self._map.close()
        os.close(self.fd)


def _populate(mapping: mmap.mmap) -> None:
    """Map all pages now, huge ones where the kernel has them: a first touch is expensive.

    An older kernel refuses: slower, not wrong. Unlike `mmap.madvise`, this lets other threads
    run meanwhile; the kernel needs a second for a gigabyte.
    """
    whole = (ctypes.c_char * len(mapping)).from_buffer(mapping)
    for advice in (mmap.MADV_HUGEPAGE, _MADV_POPULATE_WRITE):
        _LIBC.madvise(ctypes.byref(whole), ctypes.c_size_t(len(mapping)), advice)


def available_bytes(groups: Path = _GROUPS, membership: Path = _MEMBERSHIP) -> int:
    """Return the memory that this process may still take: the machine's, or its container's."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    fields = dict(line.split(":", 1) for line in lines)
    machine_bytes = int(fields["MemAvailable"].split()[0]) << 10
    return max(0, min([machine_bytes, *_free_in_groups(groups, membership)]))


def _free_in_groups(groups: Path, membership: Path) -> Iterator[int]:
    """Yield the bytes that are free in this process's control group, and in each around it."""
    own: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in membership.read_text(encoding="utf-8").splitlines():
            _, controllers, name = line.split(":", 2)
            own.update(dict.fromkeys(controllers.split(","), name.lstrip("/")))
    for controller, folder, limit_file, used_file, prefix in _GROUP_FILES:
        path = Path(own.get(controller, ""))
        for group in (groups / folder / around for around in (path, *path.parents)):
            with contextlib.suppress(OSError, ValueError):  # none there, or the limit is "max"
                limit = int((group / limit_file).read_text(encoding="ascii"))
                used = int((group / used_file).read_text(encoding="ascii"))
                yield limit - used + _cached_bytes(group / "memory.stat", prefix)


def _cached_bytes(statistics: Path, prefix: str) -> int:
    """Return how much of a group's memory only caches files, which the kernel drops on demand."""
    names = [f"{prefix}{kind}_file" for kind in ("active", "inactive")]
    with contextlib.suppress(OSError):
        lines = statistics.read_text(encoding="ascii").splitlines()
        return sum(int(line.split()[1]) for line in lines if line.split()[0] in names)
    return 0
