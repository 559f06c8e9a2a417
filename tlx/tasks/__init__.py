"""Tasks: targets, losses, metrics and predictions. Each file or folder is one task."""
