"""Kernels of the towers' most expensive operations: a plain form, and one for each accelerator."""
