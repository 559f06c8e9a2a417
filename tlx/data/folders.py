"""The folder that a user names with --data."""

import os
import pathlib

from tlx.types import UsageError


def path_of(kind: str, argument: str) -> pathlib.Path:
  """Returns the absolute path that stands after 'KIND:' in --data. Raises UsageError if there is none."""
  if not argument:
    raise UsageError(f'data set {kind!r} needs a path; write --data {kind}:PATH')
  return pathlib.Path(os.path.abspath(os.path.expanduser(argument)))


def folder_of(kind: str, argument: str, content: str) -> pathlib.Path:
  """Returns the absolute path of a folder.

  Args:
    kind: name of the data set's file in `tlx/datasets`.
    argument: path as the user typed it; it may begin with ~.
    content: what the folder must contain, for the message.

  Returns:
    The path.

  Raises:
    UsageError: if there is no path, or it is not a folder.
  """
  root = path_of(kind, argument)
  if not root.is_dir():
    state = 'is a file, not a folder' if root.is_file() else 'does not exist'
    raise UsageError(f'{argument} {state}; choose the folder that holds {content}')
  return root
