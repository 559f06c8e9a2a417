"""Image classification: one class a picture."""

from tlx.tasks.classification.task import Task

__all__ = ['Task']
