"""Hydra entry points, one an experiment; each leaves a tidy table of samples and provenance."""
