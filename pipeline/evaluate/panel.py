"""A few images with what zero-shot said of them: drawn by a seed, not chosen."""

import base64
import io
from dataclasses import dataclass
from itertools import islice

import numpy as np
from PIL import Image

from pipeline.evaluate.tasks import Outcome

COUNT = 6
SIDE = 96


@dataclass(frozen=True)
class Shown:
    """`image` is a data: URI; `said` the three highest classes."""

    task: str
    key: str
    image: str
    said: tuple[str, ...]
    label: str

    @property
    def right(self) -> bool:
        return self.said[0] == self.label


def panel(outcome: Outcome, split: str, seed: int) -> list[Shown]:
    """Of a classification with one label an image, COUNT images; of others none."""
    if outcome.right() is None or outcome.scores is None or outcome.truth is None:
        return []
    n = len(outcome.scores)
    drawn = sorted(np.random.default_rng(seed).choice(n, min(COUNT, n), replace=False).tolist())
    made = []
    samples = outcome.dataset.samples(split)
    last = -1
    for row in drawn:
        sample = next(islice(samples, row - last - 1, None))
        last = row
        highest = (-outcome.scores[row]).argsort(kind="stable")[:3]
        said = tuple(outcome.classes[place] for place in highest)
        label = outcome.classes[outcome.truth.labels[row]]
        made.append(Shown(outcome.dataset.name, sample.key, _small(sample.image), said, label))
    return made


def _small(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as opened:
        image = opened.convert("RGB")
        image.thumbnail((SIDE, SIDE))
        out = io.BytesIO()
        image.save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()
