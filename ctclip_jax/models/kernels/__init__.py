"""Kernels of the towers' dearest operations: a plain form, and one for each accelerator."""
