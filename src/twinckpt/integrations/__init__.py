"""`Checkpointer` in training frameworks: one module each, which needs its framework.

`pip install 'twinckpt[integrations]'` brings them all; nothing here imports one before its
module is imported:

- `twinckpt.integrations.huggingface`: `TwinCallback` for `transformers.Trainer`
- `twinckpt.integrations.lightning`: `TwinCallback` for `lightning.pytorch.Trainer`
"""
