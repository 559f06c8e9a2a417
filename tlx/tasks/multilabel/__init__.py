"""Multi-label classification: any number of tags a picture."""

from tlx.tasks.multilabel.task import Task

__all__ = ['Task']
