"""Multi-label classification: any number of tags per picture."""

from tlx.tasks.multilabel.task import Task

__all__ = ['Task']
