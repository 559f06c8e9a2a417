"""How orbax and tensorstore fail: what it says of a checkpoint, in few words, and without the noise."""

import errno
import functools
import logging
import os
import sys
import warnings
from typing import Any

from tlx import files

# What readers raise on content that is missing or cannot be decoded; json's, Unicode's and most of tensorstore's errors
# are ValueErrors.
UNDECODABLE = (ValueError, LookupError, TypeError, AttributeError, EOFError, *files.MISSING)
# tensorstore turns the system's refusals into ValueErrors too, with these words in them.
REFUSALS = [
  os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM)
]


def undecodable(error: BaseException) -> bool:
  """Whether missing or damaged content explains an error, and nothing else has a part in it."""
  chain = _chain(error)
  damage = all(type(each) is Exception or isinstance(each, UNDECODABLE) for each in chain)  # orbax wraps in Exception
  return damage and not any(words in str(each) for each in chain for words in REFUSALS)


def _chain(error: BaseException) -> list[BaseException]:
  """An error and what it was raised from, down to the root."""
  return [error, *(_chain(error.__cause__) if error.__cause__ else [])]


def brief(error: BaseException) -> str:
  """The first line of what is at the root of an error; of a long one its two ends, where tensorstore has the cause."""
  root = _chain(error)[-1]
  line = (str(root).strip().splitlines() or [type(root).__name__])[0]
  return line if len(line) <= 160 else f'{line[:60]} ... {line[-95:]}'


@functools.cache
def silence() -> None:
  """Orbax reports every save, raises one error of many, and leaves the others to asyncio and to Python to print."""
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  logging.getLogger('asyncio').addFilter(_of_others)
  # Python has no public hook that is handed the coroutine; a filter by name would hide those of the user too.
  if warn := getattr(warnings, '_warn_unawaited_coroutine', None):
    warnings._warn_unawaited_coroutine = lambda coroutine: None if _of_orbax(coroutine) else warn(coroutine)
  hook = sys.unraisablehook
  sys.unraisablehook = lambda found: None if _abandoned(found) else hook(found)


def _of_others(record: logging.LogRecord) -> bool:
  text = logging.Formatter().format(record)  # with its traceback
  return not any(word in text for word in ('orbax', 'tensorstore', 'OCDBT'))


def _abandoned(found: Any) -> bool:
  """Whether Python came upon what is left of a read or write that orbax gave up."""
  return str(found.exc_value) == 'Event loop is closed' or _of_orbax(found.object)


def _of_orbax(coroutine: Any) -> bool:
  return 'orbax' in getattr(getattr(coroutine, 'cr_code', None), 'co_filename', '')
