"""A real training to checkpoint: byte-level GPT, corpus, trainer, and the disk baseline."""
