"""The contrastive losses over a global batch that lies on several workers, and their exact gradients.

Each worker holds b rows of the batch's B. It computes its own rows of logits against everybody's features ("local
loss"), a block of rows at a time, so that memory grows with B, not with B². The gradients that belong to other
workers' features are summed over the workers ("gathered gradients"): what comes out is the gradient of the one loss
over the whole batch, whatever the number of workers, as open_clip's ClipLoss(local_loss, gather_with_grad) and
SigLipLoss have it.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pipeline.train.world import World

LossName = Literal["clip", "siglip"]
BLOCK_LOGITS = 1 << 24
"""Logits in memory at a time."""


@dataclass
class Contrast:
    """`loss`: this worker's part of the global loss; the sum over workers is the loss. Gradients are of the global
    loss: those of the features whole, those of scale and bias this worker's part."""

    loss: Tensor
    correct: Tensor
    """Rows whose own text is the nearest of the batch."""
    images: Tensor
    texts: Tensor
    log_scale: Tensor
    bias: Tensor | None


def contrast(
    name: LossName, images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor | None, weights: Tensor,
    present: Tensor, world: World,
) -> Contrast:  # fmt: skip
    """`images`, `texts`: unit vectors [b, d]. `weights` [b]: how often a row counts. `present` [b]: rows that are
    there at all; others are nobody's negatives either.

    CLIP (Radford et al. 2021, figure 3): the mean of the two cross-entropies. SigLIP (Zhai et al. 2023, equation 1):
    the sum over all pairs, divided by the batch.
    """
    mine = [one.detach().requires_grad_() for one in (images, texts)]
    all_images, all_texts = (world.gather(one.detach()).requires_grad_() for one in mine)
    there = world.gather(present)
    scale_leaf = log_scale.detach().clone().requires_grad_()
    bias_leaf = None if bias is None else bias.detach().clone().requires_grad_()
    total = world.gather(weights).sum().clamp_min(torch.finfo(weights.dtype).tiny)
    outside = torch.zeros(len(there), dtype=images.dtype, device=images.device).masked_fill(~there, -torch.inf)
    first = world.rank * len(images)
    loss = images.new_zeros(())
    correct = images.new_zeros(())
    rows = present.nonzero().ravel()
    for block in torch.split(rows, max(1, BLOCK_LOGITS // len(there))):
        own, weight, scale = block + first, weights[block], scale_leaf.exp()
        if name == "clip":
            by_image = scale * mine[0][block] @ all_texts.T + outside
            by_text = scale * mine[1][block] @ all_images.T + outside
            if bias_leaf is not None:  # it changes neither softmax
                by_image, by_text = by_image + bias_leaf, by_text + bias_leaf
            each = F.cross_entropy(by_image, own, reduction="none") + F.cross_entropy(by_text, own, reduction="none")
            part = (weight * each).sum() / (2 * total)
        else:
            by_image = scale * mine[0][block] @ all_texts.T
            by_image = by_image if bias_leaf is None else by_image + bias_leaf
            signs = torch.full_like(by_image, -1).scatter_(1, own[:, None], 1)
            each = (-F.logsigmoid(signs * by_image) * there).sum(1)
            part = (weight * each).sum() / total
        part.backward()  # type: ignore[no-untyped-call]
        with torch.no_grad():
            loss += part.detach()
            correct += ((by_image + outside).argmax(1) == own).sum()
    grads = [_grad(one) for one in mine]
    for grad, everybody in zip(grads, (all_images, all_texts), strict=True):
        grad += world.sum_rows(_grad(everybody))
    biased = None if bias_leaf is None else _grad(bias_leaf)
    return Contrast(loss, correct, grads[0], grads[1], _grad(scale_leaf), biased)


def _grad(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
