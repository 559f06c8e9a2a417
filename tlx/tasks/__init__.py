"""What a head predicts, how its loss is computed and how it is scored: one task a file, pure functions."""
