"""What turns a model, labels and batches into a trained model: optimiser, pure step, placement, checkpoints, loop."""
