"""Inference: load, encode, classify, attribute."""
