"""Copies between tensors, however torch sees their memory."""

import torch

from twinckpt.checkpointer import moving


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
