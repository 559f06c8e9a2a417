"""What a model is worth: exact passes over a split."""
