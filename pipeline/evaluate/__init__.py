"""A CLIP measured as its paper does: zero-shot, retrieval, probes, shifts, overlap and groups, on local datasets."""
