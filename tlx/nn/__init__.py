"""Layers that two or more families share. Every layer computes in the dtype of its input."""
