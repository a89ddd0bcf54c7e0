"""Metrics on numpy arrays, without jax or a model."""
