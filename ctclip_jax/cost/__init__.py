"""Cost of a train step: FLOPs, memory, collectives, peaks of accelerators, the dry run."""
