"""A byte-level GPT in plain PyTorch: pre-norm blocks, causal attention.

Shapes: B sequences, T tokens, C width, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812

from twinckpt.training.config import ModelConfig


class Block(nn.Module):
    """Attention and a two-layer perceptron, each added to its input."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.attention_in = nn.Linear(config.width, 3 * config.width)
        self.attention_out = nn.Linear(config.width, config.width)
        self.perceptron_norm = nn.LayerNorm(config.width)
        self.perceptron = nn.Sequential(
            nn.Linear(config.width, 4 * config.width),
            nn.GELU(),
            nn.Linear(4 * config.width, config.width),
            nn.Dropout(config.dropout),
        )

    def forward(self, x_btc: torch.Tensor) -> torch.Tensor:
        """Map (B, T, C) to (B, T, C)."""
        batch, tokens, width = x_btc.shape
        parts = self.attention_in(self.attention_norm(x_btc)).split(width, dim=2)
        query, key, value = (
            part.view(batch, tokens, self.heads, width // self.heads).transpose(1, 2)
            for part in parts
        )
        mixed = F.scaled_dot_product_attention(
            query, key, value, is_causal=True, dropout_p=self.dropout if self.training else 0.0
        )
        x_btc = x_btc + self.attention_out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x_btc + self.perceptron(self.perceptron_norm(x_btc))


class GPT(nn.Module):
    """Predicts each next byte."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.tokens = nn.Embedding(config.vocabulary, config.width)
        self.positions = nn.Embedding(config.context, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.head = nn.Linear(config.width, config.vocabulary, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, inputs_bt: torch.Tensor, targets_bt: torch.Tensor) -> torch.Tensor:
        """Return the mean cross-entropy in nats of predicting `targets` from `inputs`."""
        positions = torch.arange(inputs_bt.shape[1], device=inputs_bt.device)
        x_btc = self.tokens(inputs_bt) + self.positions(positions)
        for block in self.blocks:
            x_btc = block(x_btc)
        logits_btv = self.head(self.norm(x_btc))
        return F.cross_entropy(logits_btv.flatten(0, 1), targets_bt.flatten())
