"""Copies between tensors, however torch sees their memory."""

import ctypes
import shutil
from itertools import product

import pytest
import torch

from twinckpt.checkpointer import moving

SIZES = (0, 1, 63, 64, 65, (16 << 10) - 1, 16 << 10, (16 << 10) + 100, 1 << 20)


@pytest.mark.skipif(not shutil.which("cc"), reason="no C compiler to build it with")
def test_where_there_is_a_compiler_large_copies_are_streamed():
    assert moving.STREAMS


@pytest.mark.parametrize("copy", [moving.move, moving._move_large, moving.memmove])
def test_bytes_are_moved_whatever_their_alignment_and_nothing_around_them(copy):
    """Streaming stores go by lines of 64 bytes; what is around those is copied plainly."""
    room = 256
    for size, to, from_ in product(SIZES, (0, 1, 15, 63), (0, 1, 16, 63)):
        source = torch.randint(1, 256, (size + room,), dtype=torch.uint8)
        target = torch.zeros(size + room, dtype=torch.uint8)
        copy(target.data_ptr() + to, source.data_ptr() + from_, size)
        assert torch.equal(target[to : to + size], source[from_ : from_ + size])
        assert not target[:to].any()
        assert not target[to + size :].any()


@pytest.mark.skipif(not moving.STREAMS, reason="installed without a C compiler")
@pytest.mark.parametrize("wrong", [(1, 2), (1, 2, 3, 4), ("a", 2, 3), (1, 2, -3)])
def test_a_copy_of_something_else_is_refused(wrong):
    with pytest.raises((TypeError, OverflowError)):
        moving._move_large(*wrong)


def test_memory_is_seen_where_it_is():
    data = ctypes.create_string_buffer(b"abcdef")
    seen = moving.memory(ctypes.addressof(data) + 2, 3)
    data[3] = b"X"
    assert bytes(seen) == b"cXe"
    assert seen.readonly


def test_copies_that_are_started_together_arrive_in_every_kind_of_target():
    """torch takes a list of targets in one call, but none that it sees negated or conjugated."""
    with torch.inference_mode():
        for_inference = torch.zeros(3)
    number = torch.zeros(3, dtype=torch.complex64)
    targets = {
        "plain": torch.zeros(3),
        "strided": torch.zeros(6)[::2],
        "few_bits": torch.zeros(3, dtype=torch.uint8).view(torch.float8_e4m3fn),
        "negated": torch._neg_view(torch.zeros(3)),
        "conjugated": number.conj(),
        "inference": for_inference,
    }
    sources = {name: torch.ones_like(target) for name, target in targets.items()}
    for odd in ([], ["negated"], ["conjugated"], ["inference"]):
        some = ["plain", "strided", "few_bits", *odd]
        for name in some:
            moving.copy_by_torch(targets[name], torch.zeros_like(targets[name]))
        with torch.no_grad():
            moving.start_copies([targets[n] for n in some], [sources[n] for n in some])
        for name in some:
            assert moving.same_bits(targets[name], sources[name]), name
