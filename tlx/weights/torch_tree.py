"""Finds the tensors in the objects of a torch checkpoint and names them by their place: 'state_dict.conv1.weight'.

Dictionaries, lists and the attributes of objects are searched. The tensors of a pickled module have the names that its
`state_dict()` gives them.
"""

from collections.abc import Iterator
from typing import Any

from tlx.weights.torch_names import OddKey, Record, View

DEPTH = 64  # of a tensor below the root
TENSORS = 200_000
CHARACTERS = 64 << 20  # of all names together
STEPS = 2_000_000  # nodes visited; a list that holds itself has many paths to a tensor
CHOICES = ('state_dict_ema', 'model_ema', 'state_dict', 'model')  # timm loads the first that a checkpoint has


def tensors(tree: Any) -> dict[str, View]:
  """Names all tensors of a checkpoint.

  Args:
    tree: what `torch_pickle.Machine.load` built.

  Returns:
    {name: tensor}, in the order of the file.

  Raises:
    ValueError: if two tensors have one name, or if there are too many tensors or levels.
  """
  found: dict[str, View] = {}
  inner, characters, steps = _holders(tree), 0, 0
  pending: list[tuple[str, Any, tuple[int, ...]]] = [('', tree, ())]  # (name, node, the nodes above it)
  while pending:
    name, node, above = pending.pop()
    steps += 1
    if steps > STEPS or characters > CHARACTERS:
      raise ValueError('too many places where tensors may be')
    if isinstance(node, View):
      if len(found) >= TENSORS:
        raise ValueError(f'more than {TENSORS:,} tensors')
      if name in found:
        raise ValueError(f'two tensors are called {name!r:.80}')
      found[name] = node
    elif id(node) in inner and id(node) not in above:
      if len(above) > DEPTH:
        raise ValueError(f'its tensors lie more than {DEPTH} levels deep')
      below = (*above, id(node))
      for part, child in reversed([*_parts(node)]):
        if isinstance(child, View) or id(child) in inner:
          whole = f'{name}.{part}' if name and part else name or part
          characters += len(whole)
          pending.append((whole, child, below))
  return found


def preferred(tree: Any) -> str:
  """The dictionary that timm would load, with a dot, such as 'state_dict_ema.'; '' for the checkpoint itself."""
  chosen = next((key for key in CHOICES if tree.get(key) is not None), '') if type(tree) is dict else ''
  return f'{chosen}.' if chosen else ''


def kinds(tree: Any) -> str:
  """Says what a checkpoint without tensors holds."""
  if type(tree) is dict:
    return f'a dictionary of {[_text(key)[:40] for key in list(tree)[:5]]}' if tree else 'an empty dictionary'
  return f'an object of class {tree.name!r:.80}' if isinstance(tree, Record) else f'an object of {type(tree).__name__}'


def _parts(node: Any) -> Iterator[tuple[str, Any]]:
  """(name, part) of all parts of a node; the name is '' if it adds nothing to the names of tensors."""
  if type(node) is dict:
    yield from ((_text(key), value) for key, value in node.items())
  elif type(node) in (list, tuple):
    yield from ((str(i), value) for i, value in enumerate(node))
  elif isinstance(node, Record) and type(node.state) is dict and '_modules' in node.state:
    yield from _module_parts(node.state)
  elif isinstance(node, Record):
    yield from (('', part) for part in (node.entries, node.state, node.items, node.arguments) if part)


def _module_parts(state: dict[Any, Any]) -> Iterator[tuple[str, Any]]:
  """The parts of a module that belong to its state dict."""
  hidden = _names(state.get('_non_persistent_buffers_set'))
  yield '', state.get('_parameters')
  buffers = state.get('_buffers')
  yield from ((_text(key), x) for key, x in (buffers.items() if type(buffers) is dict else ()) if key not in hidden)
  yield '', state.get('_modules')


def _names(record: Any) -> set[str]:
  """The texts in a set."""
  if not isinstance(record, Record):
    return set()
  given = record.items or (record.arguments[0] if record.arguments and type(record.arguments[0]) is list else [])
  return {name for name in given if type(name) is str}


def _text(key: Any) -> str:
  return key.text if isinstance(key, OddKey) else str(key)


def _holders(tree: Any) -> set[int]:
  """The ids of the nodes that have tensors below them. Each node is visited once, however often it is referred to."""
  above: dict[int, list[int]] = {id(tree): []}  # the nodes that refer to a node
  pending, holding = [tree], []
  while pending:
    node = pending.pop()
    for _, part in _parts(node):
      if isinstance(part, View):
        holding.append(id(node))
      elif type(part) in (dict, list, tuple, Record):
        if id(part) not in above:
          above[id(part)] = []
          pending.append(part)
        above[id(part)].append(id(node))
  holders: set[int] = set()
  while holding:
    node = holding.pop()
    if node not in holders:
      holders.add(node)
      holding += above[node]
  return holders
