"""Pictures of filters, augmentations and features."""
