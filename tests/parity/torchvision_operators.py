"""To be imported before torchvision, which timm imports: makes it importable beside a CPU PyTorch.

The wheel registers shapes for operators that only a matching build carries: they get names here, and no code, since no
classifier calls them.
"""

import contextlib

OPERATORS = (
  'nms', 'qnms', 'roi_align', 'qroi_align', '_roi_align_backward', 'roi_pool', '_roi_pool_backward', 'ps_roi_align',
  '_ps_roi_align_backward', 'ps_roi_pool', '_ps_roi_pool_backward', 'deform_conv2d', '_deform_conv2d_backward',
  '_cuda_version',
)  # fmt: skip
KEPT = []  # a library that is collected takes its operators along


def name_operators() -> None:
  import torch

  library = torch.library.Library('torchvision', 'FRAGMENT')
  for name in OPERATORS:
    library.define(f'{name}(Tensor x) -> Tensor' if name != '_cuda_version' else f'{name}() -> int')
  KEPT.append(library)


with contextlib.suppress(ImportError):
  try:
    import torchvision
  except RuntimeError:  # operator torchvision::nms does not exist
    name_operators()
    import sys

    for name in [name for name in sys.modules if name.partition('.')[0] == 'torchvision']:
      del sys.modules[name]
    import torchvision  # noqa: F401
