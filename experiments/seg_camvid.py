"""Segmentation of street scenes on EfficientNet-Lite0: 110 training pictures of CamVid, 11 classes.

  python experiments/seg_camvid.py PATH [STRATEGY] [HEAD]     with PATH/{train,val,test}/{images,masks}/*

The set has every k-th frame of CamVid at 320 x 240 pixels: 110 for training, 45 for validation and 45 for test. The
test frames show a drive that is in no other split.

Measured with seed 0 on 2 shared CPU cores, 2026-11-25, by

  tlx finetune --data masks:PATH --epochs 20 --strategy STRATEGY [--head HEAD]

mIoU and pixel accuracy on test, at the end of the run; GFLOPs of a step of 8 images and bytes of optimizer state by
`tlx cost --task segmentation --head HEAD --strategy STRATEGY --batch-size 8 --num-classes 11 --image-size 256x320`:

  head           strategy       mIoU   pixels  learn      GFLOPs  state
  U-Net          linear_probe   0.465   0.867   57 %   176.6   36 MB
  U-Net          partial:3      0.461   0.868   76 %   195.4   48 MB
  U-Net          full           0.451   0.861  100 %   214.3   63 MB
  U-Net          scratch        0.356   0.786  100 %   214.3   63 MB
  deeplabv3plus  full           0.525   0.870  100 %    64.1   44 MB

The loss is cross-entropy plus dice; with `--task "segmentation(losses=ce)"` full fine-tuning of the U-Net reaches 0.425
and 0.873, and with `tlx evaluate RUN --split test --scales 1` (windows at the picture's own scale) 0.434 and 0.882.
On MobileNetV2 with the float weights of torchvision's layout (`--model mobilenetv2_100 --weights FILE`), the U-Net
reaches 0.441 and 0.863. DeepLab v3+ took 466 s without other work beside it. After a linear probe every tensor of the
encoder equals the published one bit for bit.

Reference: PyTorch with the same weights reaches 0.429 and 0.879 (U-Net) and 0.417 (DeepLab v3+) after 20 epochs of
full fine-tuning.
"""

import sys

import tlx

experiment = lambda path, strategy='full', head='unet': tlx.Experiment(
  data=f'masks:{path}', strategy=strategy, head=head, epochs=20
)

if __name__ == '__main__':
  tlx.finetune(experiment(*sys.argv[1:]))
