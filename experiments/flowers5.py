"""Five flowers, 80 training photographs of each, EfficientNet-Lite0: linear probe against full fine-tuning.

  python experiments/flowers5.py PATH [STRATEGY]     with PATH/train/CLASS/*.jpg and PATH/val/CLASS/*.jpg

Measured: RESULT_FLOWERS
Reference: 0.870 for scikit-learn's logistic regression with its best C, 0.905 for full fine-tuning, both in PyTorch.
"""

import sys

import tlx

experiment = lambda path, strategy='full': tlx.Experiment(data=f'folder:{path}', strategy=strategy)

if __name__ == '__main__':
  tlx.finetune(experiment(*sys.argv[1:]))
