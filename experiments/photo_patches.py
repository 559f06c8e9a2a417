"""Crops of 18 photographs, EfficientNet-Lite0, head first and then everything.   python experiments/photo_patches.py

Measured: RESULT_PATCHES
"""

import tlx

experiment = tlx.Experiment(data='photo_patches', strategy='lp_ft')

if __name__ == '__main__':
  tlx.finetune(experiment)
