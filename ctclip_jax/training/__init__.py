"""Training: config, step, losses, optimizer, logging."""
