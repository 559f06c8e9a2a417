"""Semantic segmentation: one class per pixel."""

from tlx.tasks.segmentation.task import Task

__all__ = ['Task']
