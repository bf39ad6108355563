"""Hydra entry points, one per experiment; each writes a tidy table of samples and provenance."""
