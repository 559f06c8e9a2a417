"""Heads: the layers that turn the features of a backbone into outputs. Each file defines one kind of head.

A head is a linen module `Head(num_classes, levels, ...)`. Its call takes the backbone's outputs by layer name (and
'pooled' [b, d]) and whether it trains: dropout is on then, and batch norms use the statistics of the batch. It raises
UsageError for layers that the backbone lacks, for too few levels, and for options out of range.
"""
