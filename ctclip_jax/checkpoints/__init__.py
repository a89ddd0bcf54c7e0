"""Checkpoints of a run, exports, and PyTorch weight files."""
