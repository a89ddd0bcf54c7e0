"""Metrics on numpy arrays: detection of labels, retrieval; neither jax nor a model is needed."""
