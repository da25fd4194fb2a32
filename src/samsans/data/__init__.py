"""Cases, splits, transforms, slices and episodes: from files to batches."""
