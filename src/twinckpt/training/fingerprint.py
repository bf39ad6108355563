"""A hash of everything a rank carries from step to step; equal hashes mean equal bits."""

import hashlib
import json
from typing import Any

import torch

from twinckpt.checkpointer.state import TrainingState


def fingerprint(state: dict[str, Any]) -> str:
    """Return the SHA-256 of a training state: tensors by name and bits, plain values as JSON."""
    flat = TrainingState(state).capture()
    digest = hashlib.sha256(json.dumps(json.loads(flat.text), sort_keys=True).encode())
    for name, tensor in sorted(flat.tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(raw.numpy().tobytes())
    return digest.hexdigest()
