"""Images to their captions and back: recall@k, where any of an image's captions is a hit."""

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluate.intervals import bootstrap, clopper_pearson
from pipeline.evaluate.results import Row
from pipeline.evaluate.scoring import LEVEL

CHUNK = 1024
AT = (1, 5, 10)


def first_hits(
    queries: NDArray[np.float32],
    targets: NDArray[np.float32],
    query_of: NDArray[np.int64],
    target_of: NDArray[np.int64],
) -> NDArray[np.int64]:
    """For each query, how many targets are nearer than the nearest of its own (that have its number) [n]."""
    found = np.empty(len(queries), np.int64)
    for at in range(0, len(queries), CHUNK):
        scores = queries[at : at + CHUNK] @ targets.T
        own = query_of[at : at + CHUNK, None] == target_of[None, :]
        best = np.where(own, scores, -np.inf).max(axis=1, keepdims=True)
        found[at : at + CHUNK] = ((scores >= best) & ~own).sum(axis=1)  # of equals, the wrong one counts as nearer
    return found


def retrieval(
    task: str,
    images: NDArray[np.float32],
    texts: NDArray[np.float32],
    image_of: NDArray[np.int64],
    seed: int = 0,
) -> list[Row]:
    """`images` [n, dim], `texts` [m, dim], `image_of` [m]: the image each text is of. Rows both ways and their mean."""
    numbers = np.arange(len(images))
    there = first_hits(images, texts, numbers, image_of)
    back = first_hits(texts, images, image_of, numbers)
    rows = []
    for k in AT:
        for name, found in (("image_to_text", there), ("text_to_image", back)):
            hit = int((found < k).sum())
            low, high = clopper_pearson(hit, len(found), LEVEL)
            rows.append(Row(task, "retrieval", f"{name}_recall@{k}", hit / len(found), len(found), low, high, LEVEL))
    texts_of = np.bincount(image_of, minlength=len(images))
    found_of = np.bincount(image_of, weights=back < 1, minlength=len(images))

    def mean(drawn: NDArray[np.int64]) -> float:  # an image is drawn with its texts
        return float(((there[drawn] < 1).mean() + found_of[drawn].sum() / texts_of[drawn].sum()) / 2)

    low, high = bootstrap(mean, len(images), seed)
    rows.append(Row(task, "retrieval", "mean_recall@1", mean(numbers), len(images), low, high, LEVEL, main=True))
    return rows
