"""Semantic segmentation: one class a pixel."""

from tlx.tasks.segmentation.task import Task

__all__ = ['Task']
