"""The way from a stored image to a batch: decode, host transforms, device augmentation, pipeline."""
