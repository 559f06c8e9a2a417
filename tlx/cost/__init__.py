"""What a model and a training step cost, found without running them."""
