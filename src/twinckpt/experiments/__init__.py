"""Hydra entry points, one an experiment; each leaves one tidy table of samples and its provenance."""
