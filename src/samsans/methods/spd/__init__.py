"""SPD: a saliency prior distils noisy points across slices before SAM sees them."""
