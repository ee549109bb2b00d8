"""Near-duplicates in embedding space, and the clusters of image vectors that image-based selection asks."""
