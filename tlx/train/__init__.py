"""Training: the optimizer, the pure step, its sharding over devices, checkpoints, and the loop."""
