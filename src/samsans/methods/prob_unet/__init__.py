"""The Probabilistic U-Net: the yardstick of ambiguous segmentation."""
