"""A twin of every rank's training state in a peer machine's RAM."""
