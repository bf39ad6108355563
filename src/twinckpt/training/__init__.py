"""A real training job to checkpoint: byte-level GPT, corpus, trainer, and the disk baseline."""
