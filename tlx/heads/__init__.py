"""Heads: modules that turn a backbone's features into what a task needs, one file each."""
