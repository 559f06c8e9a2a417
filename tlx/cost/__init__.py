"""The cost of a model and of a training step, found without running them."""
