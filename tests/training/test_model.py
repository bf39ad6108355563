"""The model is a causal language model that the seed alone decides."""

import math

import pytest
import torch

from twinckpt.errors import ConfigurationError
from twinckpt.training.config import ModelConfig
from twinckpt.training.model import GPT

SMALL = ModelConfig(context=16, width=32, layers=2, heads=2)


def built(seed):
    """Return the small model as a seed makes it."""
    torch.manual_seed(seed)
    return GPT(SMALL)


def batch():
    """Return one batch of random bytes."""
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(256, (3, SMALL.context + 1), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def trained(seed, steps=3):
    """Return the parameters after some steps, dropout included."""
    model = built(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(steps):
        model(*batch()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_equal_seeds_train_to_equal_bits():
    """Model, dropout and optimizer take their randomness from one generator."""
    assert torch.equal(trained(seed=1), trained(seed=1))


def test_other_seed_other_parameters():
    """The comparison above is not one of constants."""
    assert not torch.equal(trained(seed=1), trained(seed=2))


def test_dropout_draws_from_the_generator():
    """Recovery must carry the generator's state: without it the next loss differs."""
    model = built(seed=0)
    assert model(*batch()).item() != model(*batch()).item()


def test_untrained_model_knows_nothing():
    """A byte costs about log(256) nats before training."""
    model = built(seed=0).eval()
    assert model(*batch()).item() == pytest.approx(math.log(256), rel=0.05)


def test_future_bytes_do_not_matter():
    """Attention is causal: the last input changes the last prediction only."""
    model = built(seed=0).eval()
    inputs, targets = batch()
    changed = inputs.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 256
    ignored = targets.clone()
    ignored[:, -1] = -100  # cross_entropy leaves these out
    assert model(inputs, ignored).item() == model(changed, ignored).item()
    assert model(inputs, targets).item() != model(changed, targets).item()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"width": 100, "heads": 8}, "multiple of model.heads"),
        ({"layers": 0}, "model.layers=0 must be at least 1"),
        ({"dropout": 1.0}, "model.dropout=1.0"),
        ({"vocabulary": 100}, "at least 256"),
    ],
)
def test_impossible_model_is_refused(wrong, says):
    """The message names the setting and its limit."""
    with pytest.raises(ConfigurationError, match=says):
        ModelConfig(**wrong)
