"""Moving bytes between live tensors and slots as fast as the memory can.

A tensor that lies in CPU memory the way a slot would hold it is moved with streaming stores
(`streaming.c`), which take two thirds of the time of `memmove`, as that does of torch's copy
kernel. Any other one (strided, conjugated, on a device) is left to `Tensor.copy_`.
"""

import ctypes
import errno
import os
from collections.abc import Sequence

import torch

_SMALL_BYTES = 16 << 10
_PIECE_BYTES = 64 << 20

_address = ctypes.cast(ctypes.memmove, ctypes.c_void_p).value
assert _address is not None
_ARGUMENTS = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
memmove = ctypes.CFUNCTYPE(*_ARGUMENTS)(_address)
# Giving up the interpreter's lock costs more than a small copy.
_move_small = ctypes.PYFUNCTYPE(*_ARGUMENTS)(_address)

try:
    from twinckpt.checkpointer._streaming import copy as _move_large
except ImportError:  # there was no C compiler when this package was installed
    _move_large = memmove

STREAMS = _move_large is not memmove

# Takes two addresses and a number of bytes; returns 0 if those bytes are the same at both.
differ = ctypes.PYFUNCTYPE(ctypes.c_int, *_ARGUMENTS[1:])(("memcmp", ctypes.CDLL(None)))

_READ_ONLY = 0x100  # PyBUF_READ
_view = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_int)(
    ("PyMemoryView_FromMemory", ctypes.pythonapi)
)


def lies_in_order(tensor: torch.Tensor) -> bool:
    """Return whether a tensor's bytes lie in CPU memory as they would in a slot."""
    return tensor.is_cpu and tensor.is_contiguous() and not tensor.is_neg() and not tensor.is_conj()


def address_of(tensor: torch.Tensor) -> int:
    """Return where a tensor's bytes lie in memory in a slot's order; 0 if they do not."""
    return tensor.data_ptr() if lies_in_order(tensor) else 0


def move(destination: int, source: int, size_bytes: int) -> None:
    """Copy `size_bytes` from one address to another; the cache then holds the source.

    They must not overlap.
    """
    if size_bytes < _SMALL_BYTES:
        _move_small(destination, source, size_bytes)
    else:
        _move_large(destination, source, size_bytes)


def memory(address: int, size_bytes: int) -> memoryview:
    """Return the bytes at an address; the caller sees to it that they stay there."""
    return _view(address, size_bytes, _READ_ONLY)


def is_writable(address: int) -> bool:
    """Return whether the byte at an address can be written.

    A write that fails would end the process; so the kernel is asked to write there what is there
    already, which it refuses with an error instead.
    """
    byte = (ctypes.c_char * 1).from_address(address)
    read, write = os.pipe()
    try:
        os.write(write, byte)
        os.readv(read, [byte])
    except OSError as error:
        if error.errno != errno.EFAULT:
            raise
        return False
    finally:
        os.close(read)
        os.close(write)
    return True


def has_own_memory(tensor: torch.Tensor) -> bool:
    """Return whether no two elements share memory, as they do in expanded tensors and windows."""
    if tensor.is_contiguous():
        return True
    last = 0  # of the dimensions inside this one
    for step, n in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if n > 1 and step <= last:
            return False
        last += (n - 1) * step
    return True


def bits(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bytes in the order of its indices."""
    plain = _as_numbers(tensor.detach()).resolve_conj().resolve_neg().contiguous()
    # A contiguous tensor of one element may have any stride.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8)


def same_bits(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Return whether two tensors of one type and shape are the same, NaN by NaN.

    They are compared where `left` is, in pieces: a GPU may have little memory to spare.
    """
    pieces = zip(bits(left).split(_PIECE_BYTES), bits(right).split(_PIECE_BYTES), strict=True)
    return all(torch.equal(piece, other.to(piece.device)) for piece, other in pieces)


def _as_numbers(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor, as bytes if its type has one byte: torch cannot copy all of those."""
    return tensor.view(torch.uint8) if tensor.dtype.itemsize == 1 else tensor


def copy(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy a tensor into another one of the same type and shape; under `torch.no_grad`."""
    to, from_ = address_of(target), address_of(source)
    if to and from_:
        move(to, from_, source.numel() * source.element_size())
        note_write(target)
    else:
        copy_by_torch(target, source)


def copy_by_torch(target: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> None:
    """Copy a tensor however it lies in memory, and wherever."""
    target, source = _as_numbers(target), _as_numbers(source)
    if target.is_inference():
        with torch.inference_mode():  # else it may not be written to
            target.copy_(source, non_blocking=non_blocking)
    else:
        target.copy_(source, non_blocking=non_blocking)


def start_copies(targets: Sequence[torch.Tensor], sources: Sequence[torch.Tensor]) -> None:
    """Begin to copy tensors between a GPU and pinned memory, on the current stream.

    One call for all, where torch takes the targets: with a call each the host needs longer.
    """
    if any(target.is_inference() or target.is_neg() or target.is_conj() for target in targets):
        for target, source in zip(targets, sources, strict=True):
            copy_by_torch(target, source, non_blocking=True)
    else:
        torch._foreach_copy_(
            [_as_numbers(target) for target in targets],
            [_as_numbers(source) for source in sources],
            non_blocking=True,
        )


def note_write(target: torch.Tensor) -> None:
    """Let autograd know that a tensor was written to; one made for inference is not its concern."""
    if not target.is_inference():
        torch.autograd.graph.increment_version(target)
