"""What a step costs: FLOPs, compiled memory, accelerators, the dry run."""
