"""A look at held-out pairs while training: recall@1 both ways, by all workers."""

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.train.data import Input, Loader
from pipeline.train.index import SampleIndex
from pipeline.train.model import Towers
from pipeline.train.settings import TrainSettings
from pipeline.train.world import World

MOST = 10_000
"""Pairs looked at: recall@1 among more says no more of a run's course."""


class _InOrder:
    """The samples one after another; the last batch is short."""

    def __init__(self, samples: int, batch: int) -> None:
        self._samples, self.batch = samples, batch

    def samples(self, step: int) -> NDArray[np.int64]:
        return np.arange(step * self.batch, min((step + 1) * self.batch, self._samples), dtype=np.int64)


class Recall:
    """Of the first MOST pairs of an index, decoded anew at each measurement."""

    def __init__(self, index: SampleIndex, towers: Towers, settings: TrainSettings) -> None:
        self._index, self._towers, self._settings = index, towers, settings
        self._samples = min(len(index), MOST)

    @torch.no_grad()
    def measure(self, world: World) -> dict[str, float]:
        """{val_image_to_text, val_text_to_image}: the share whose nearest is its own."""
        settings, towers = self._settings, self._towers
        order = _InOrder(self._samples, settings.batch_size)
        steps = -(-self._samples // settings.batch_size)
        made = Input(towers.preprocess, towers.tokenize, False, settings.seed)
        towers.model.eval()
        loader = Loader(
            self._index, order, made, world.rank, world.size, 0, steps, settings.decoders, settings.prefetch, False
        )
        found: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        device = next(towers.model.parameters()).device
        try:
            for batch in loader:
                images, tokens = (torch.from_numpy(one).to(device) for one in (batch.images, batch.tokens))
                made_of = towers.features(images, tokens, settings.precision == "bf16")
                found.append((*made_of, torch.from_numpy(batch.present.copy()).to(device)))
        finally:
            loader.close()
        mine = [torch.cat(one) for one in zip(*found, strict=True)]
        images, texts, present = (world.gather(one) for one in mine)
        images, texts = images[present], texts[present]
        share = torch.arange(len(images), device=device).tensor_split(world.size)[world.rank]
        hits = [
            float(((one[share] @ other.T).argmax(1) == share).sum())
            for one, other in ((images, texts), (texts, images))
        ]
        summed = world.sum(hits)
        return {
            "val_image_to_text": summed[0] / max(1, len(images)), "val_text_to_image": summed[1] / max(1, len(images)),
        }  # fmt: skip
