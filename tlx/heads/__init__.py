"""Heads: what turns the features of a backbone into outputs; one kind a file."""
