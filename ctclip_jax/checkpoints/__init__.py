"""Training checkpoints, exports, and PyTorch weight files."""
