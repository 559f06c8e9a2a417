"""Which names of files and folders count: images, hidden ones, and what systems leave behind."""

import os
import unicodedata

from tlx.data import decode

# Folders that systems, network storage and notebooks leave behind. They hold copies, or nothing of the user's.
LEFTOVERS = frozenset({
  '__macosx', '@eadir', '#recycle', '@recycle', '@recently-snapshot', '#snapshot', '~snapshot', '$recycle.bin',
  'system volume information', 'lost+found', '__pycache__', 'found.000',
})  # fmt: skip
SYSTEM_FILES = frozenset({'thumbs.db', 'ehthumbs.db', 'desktop.ini', '.ds_store', 'icon\r', '.gitkeep', '.gitignore'})


def is_image(name: str) -> bool:
  """Whether a file of this name is an image in a format that tlx reads.

  >>> is_image('cat.JPG'), is_image('._cat.jpg'), is_image('notes.txt')
  (True, False, False)
  """
  return not name.startswith('.') and os.path.splitext(name)[1].lower() in decode.extensions()


def is_leftover(name: str) -> bool:
  """Whether a folder of this name is hidden, or left behind by a system or a notebook.

  >>> is_leftover('.ipynb_checkpoints'), is_leftover('@eaDir'), is_leftover('cats')
  (True, True, False)
  """
  return name.startswith('.') or name.lower() in LEFTOVERS


def same_name(name: str) -> str:
  """The one form of a name that systems write in two: macOS splits 'é' into a letter and an accent (NFD).

  >>> same_name('cafe\\u0301') == 'caf\\u00e9'
  True
  """
  return unicodedata.normalize('NFC', name)
