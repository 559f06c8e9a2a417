"""Heads: the layers that turn the features of a backbone into outputs. Each file defines one kind of head."""
