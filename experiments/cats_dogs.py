"""Linear probe of EfficientNet-Lite0 on cats and dogs, 200 training photographs per class.

  python experiments/cats_dogs.py PATH     with PATH/train/{cat,dog}/*.jpg and PATH/val/{cat,dog}/*.jpg

Measured accuracy on 400 validation photographs: 0.9850, 0.9875, 0.9875 for seeds 0, 1, 2, 34 s each on 2 shared CPU
cores, 2026-11-21. `tlx finetune --data folder:PATH --strategy linear_probe --augment light --cache-views 8` gives
0.9925, 0.9900 (seeds 0, 1).
Reference: scikit-learn's logistic regression with its best C, on PyTorch features of the same weights, reaches 0.9925.
"""

import sys

import tlx

experiment = lambda path: tlx.Experiment(data=f'folder:{path}', strategy='linear_probe')

if __name__ == '__main__':
  tlx.finetune(experiment(sys.argv[1]))
