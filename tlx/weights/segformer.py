"""Reads the backbone of a SegFormer from a config.json of transformers, whatever its head."""

from tlx.weights import records

KNOWN = {
  'num_encoder_blocks': 4,
  'patch_sizes': (7, 3, 3, 3),
  'strides': (4, 2, 2, 2),
  'mlp_ratios': (4, 4, 4, 4),
  'hidden_act': 'gelu',
}
FIELDS = {'depths': 'depths', 'widths': 'hidden_sizes', 'heads': 'num_attention_heads', 'reductions': 'sr_ratios'}


def backbone(config: records.Record) -> dict[str, tuple[int, ...]]:
  """Reads the fields of a Mix Transformer's config.

  transformers ignores 'layer_norm_eps': its norms have an epsilon of 1e-5.

  Args:
    config: complete config.json.

  Returns:
    {field: value}.

  Raises:
    UsageError: it lists all settings that tlx lacks.
  """
  records.require(config, KNOWN)
  return {field: tuple(config[name]) for field, name in FIELDS.items()}
