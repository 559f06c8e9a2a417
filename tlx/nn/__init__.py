"""Layers that two or more families share; they compute in the dtype of their input."""
