"""Errors of orbax and tensorstore: tells damage from other failures, shortens messages and silences the log."""

import atexit
import errno
import functools
import gc
import inspect
import logging
import os
import sys
import warnings
from typing import Any

from tlx import files

# Readers raise these for missing or undecodable content. The errors of json, of Unicode and most of tensorstore's are
# ValueErrors.
UNDECODABLE = (ValueError, LookupError, TypeError, AttributeError, EOFError, *files.MISSING)
# tensorstore also raises ValueError for errors of the operating system; these words in the text identify them.
REFUSALS = [
  os.strerror(code) for code in (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EACCES, errno.EPERM)
]


def undecodable(error: BaseException) -> bool:
  """Whether missing or damaged content alone caused an error.

  Args:
    error: of a reader; its causes (`__cause__`) count too.

  Returns:
    False if the operating system refused something, such as memory or open files.
  """
  chain = _chain(error)
  damage = all(type(each) is Exception or isinstance(each, UNDECODABLE) for each in chain)  # orbax wraps in Exception
  return damage and not any(words in str(each) for each in chain for words in REFUSALS)


def _chain(error: BaseException) -> list[BaseException]:
  """An error and its causes, the root cause last."""
  return [error, *(_chain(error.__cause__) if error.__cause__ else [])]


def brief(error: BaseException) -> str:
  """The first line of an error's root cause. A long line keeps its two ends, where tensorstore puts the cause."""
  root = _chain(error)[-1]
  line = (str(root).strip().splitlines() or [type(root).__name__])[0]
  return line if len(line) <= 160 else f'{line[:60]} ... {line[-95:]}'


@functools.cache
def silence() -> None:
  """Hides orbax's messages from the terminal, for the rest of the process.

  Orbax logs every save. If several of its reads or writes fail, it raises one error, and asyncio and Python print the
  others.
  """
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  logging.getLogger('asyncio').addFilter(_of_others)
  # No public hook receives the coroutine, and a filter by the warning's name would also hide the user's warnings.
  if warn := getattr(warnings, '_warn_unawaited_coroutine', None):
    warnings._warn_unawaited_coroutine = lambda coroutine: None if _of_orbax(coroutine) else warn(coroutine)
    atexit.register(_close_abandoned)  # Python does not call that hook after this
  hook = sys.unraisablehook
  sys.unraisablehook = lambda found: None if _abandoned(found) else hook(found)


def _of_others(record: logging.LogRecord) -> bool:
  text = logging.Formatter().format(record)  # includes the traceback
  return not any(word in text for word in ('orbax', 'tensorstore', 'OCDBT'))


def _abandoned(found: Any) -> bool:
  """Whether the object belongs to a read or write that orbax abandoned."""
  return str(found.exc_value) == 'Event loop is closed' or _of_orbax(found.object)


def _close_abandoned() -> None:
  """Closes the coroutines of orbax that never began, of which Python would warn."""
  for found in gc.get_objects():
    if inspect.iscoroutine(found) and _of_orbax(found) and inspect.getcoroutinestate(found) == inspect.CORO_CREATED:
      found.close()


def _of_orbax(coroutine: Any) -> bool:
  return 'orbax' in getattr(getattr(coroutine, 'cr_code', None), 'co_filename', '')
