"""A slot: anonymous memory that processes of one machine share by file descriptor.

The kernel frees it when the last process that has it ends, so nothing stays behind after
`kill -9`, and it does not count against the size of /dev/shm.
"""

import ctypes
import mmap
import os
import sys
import tempfile

from twinckpt.errors import OutOfMemoryError

_MADV_POPULATE_WRITE = 23  # Linux 5.14; the mmap module has no name for it
_LIBC = ctypes.CDLL(None)


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
        available_bytes = _available_bytes()
        if available_bytes is not None and capacity_bytes > available_bytes:
            raise OutOfMemoryError(
                f"a slot of {capacity_bytes >> 20} MiB does not fit into the "
                f"{available_bytes >> 20} MiB of memory that are free; use fewer replicas or "
                "slots, shard the state over more ranks, or give the machine more memory"
            )
        fd = _anonymous_file()
        try:
            os.ftruncate(fd, capacity_bytes)
            slot = cls(fd, capacity_bytes)
            os.posix_fallocate(fd, 0, capacity_bytes)  # what the kernel did not populate
        except OSError as error:
            os.close(fd)
            raise OutOfMemoryError(
                f"the kernel refused a slot of {capacity_bytes >> 20} MiB: {error.strerror}"
            ) from error
        return slot

    def close(self) -> None:
        """Give the memory back; views of `buffer` must be gone."""
        self.buffer.release()
        self._map.close()
        os.close(self.fd)


def _populate(mapping: mmap.mmap) -> None:
    """Map all pages now, huge ones where the kernel has them: a first touch is expensive.

    An older kernel refuses: slower, not wrong. Unlike `mmap.madvise`, this lets other threads
    run meanwhile; the kernel needs a second for a gigabyte.
    """
    if sys.platform == "linux":
        whole = (ctypes.c_char * len(mapping)).from_buffer(mapping)
        for advice in (mmap.MADV_HUGEPAGE, _MADV_POPULATE_WRITE):
            _LIBC.madvise(ctypes.byref(whole), ctypes.c_size_t(len(mapping)), advice)


def _anonymous_file() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("twinckpt-slot", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def _available_bytes() -> int | None:
    """Memory that can be taken without swapping, by the kernel's estimate and cgroup limit."""
    try:
        with open("/proc/meminfo") as lines:
            fields = dict(line.split(":", 1) for line in lines)
        available = int(fields["MemAvailable"].split()[0]) << 10
    except (OSError, KeyError):
        return None
    try:
        with (
            open("/sys/fs/cgroup/memory.max") as limit,
            open("/sys/fs/cgroup/memory.current") as used,
        ):
            available = min(available, int(limit.read()) - int(used.read()))
    except (OSError, ValueError):
        pass
    return available
