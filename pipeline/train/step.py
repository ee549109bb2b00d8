"""One step: the exact gradient of the global batch's loss, in as many parts as memory asks for.

The loss is taken on features that are cut off from the towers, which gives its gradient with respect to each feature;
the towers are then run backwards from those. In several parts (GradCache, Gao et al. 2021, arXiv:2101.06983) the
features come from a first pass without activations, and a second one repeats each part, dropout included, to run it
backwards. The temperature's gradient is taken once, on the whole batch: open_clip's accumulation takes it once a part.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.train.loss import LossName, contrast
from pipeline.train.model import MOST_LOG_SCALE, Towers
from pipeline.train.world import World


@dataclass
class Rows:
    """A worker's rows of a batch on its device; see `pipeline.train.data.Batch`."""

    images: Tensor
    tokens: Tensor
    weights: Tensor
    present: Tensor


def gradients(
    towers: Towers, rows: Rows, loss: LossName, parts: int, autocast: bool, world: World
) -> tuple[Tensor, Tensor]:
    """Set every parameter's grad to the gradient of the global loss; returns (this worker's part of the loss, its rows
    whose own text is the nearest)."""
    model = towers.model
    model.zero_grad(set_to_none=True)
    cuts = list(zip(rows.images.chunk(parts), rows.tokens.chunk(parts), strict=True))
    states: list[Any] = []
    if len(cuts) == 1:
        images, texts = towers.features(rows.images, rows.tokens, autocast)
    else:
        found = []
        with torch.no_grad():
            for some_images, some_tokens in cuts:
                states.append(_random_state(rows.images))
                found.append(towers.features(some_images, some_tokens, autocast))
        images, texts = (torch.cat(one) for one in zip(*found, strict=True))
    bias = getattr(model, "logit_bias", None)
    result = contrast(
        loss, images, texts, model.logit_scale, bias, rows.weights.to(images.dtype), rows.present, world
    )  # fmt: skip
    if len(cuts) == 1:
        _backwards((images, texts), (result.images, result.texts))
    else:
        end = _random_state(rows.images)
        sizes = [len(some_images) for some_images, _ in cuts]
        of_images, of_texts = (torch.split(one, sizes) for one in (result.images, result.texts))
        for state, cut, *grads in zip(states, cuts, of_images, of_texts, strict=True):
            _set_random_state(state, rows.images)
            _backwards(towers.features(*cut, autocast), grads)
        _set_random_state(end, rows.images)
    model.logit_scale.grad = result.log_scale.clone()
    if bias is not None and result.bias is not None:
        bias.grad = result.bias.clone()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    world.sum_all([parameter.grad for parameter in trained])
    return result.loss, result.correct


def _backwards(features: Any, grads: Any) -> None:
    trained = [(one, grad) for one, grad in zip(features, grads, strict=True) if one.requires_grad]
    if trained:
        torch.autograd.backward([one for one, _ in trained], [grad for _, grad in trained])


def _random_state(like: Tensor) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(like.device) if like.is_cuda else None


def _set_random_state(state: tuple[Tensor, Tensor | None], like: Tensor) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], like.device)


def clip(model: Any, most: float | None) -> float:
    """The norm of the whole gradient, which is scaled down to `most` where it is longer."""
    grads = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    norm = torch.nn.utils.get_total_norm(grads)
    if most is not None:
        torch.nn.utils.clip_grads_with_norm_(
            [parameter for parameter in model.parameters() if parameter.grad is not None], most, norm
        )
    return float(norm)


def hold_temperature(model: Any) -> None:
    """1 to 100, as the paper has it (section 2.5)."""
    with torch.no_grad():
        model.logit_scale.clamp_(0, MOST_LOG_SCALE)
