"""Evaluation: exact passes over a split."""
