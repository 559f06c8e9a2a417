"""Image classification: one class per picture."""

from tlx.tasks.classification.task import Task

__all__ = ['Task']
