"""AdamW with open_clip's decay groups, and its learning rates (open_clip_train 3.3, main.py and scheduler.py)."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from pipeline.train.settings import TrainSettings


@dataclass(frozen=True)
class DecayGroups:
    """Names of the parameters that are trained, as `named_parameters` orders them."""

    without: list[str]
    decayed: list[str]


def decay_groups(model: nn.Module) -> DecayGroups:
    """Gains, biases, norms and the temperature do not decay; everything else does, positional embeddings included."""
    groups = DecayGroups([], [])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        bare = parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))
        (groups.without if bare else groups.decayed).append(name)
    return groups


def is_resnet(model: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


def make_optimiser(model: nn.Module, settings: TrainSettings) -> torch.optim.AdamW:
    """Betas and eps default to the paper's, which differ between ViTs and ResNets (table 18)."""
    groups, named = decay_groups(model), dict(model.named_parameters())
    resnet = is_resnet(model)
    beta2 = settings.beta2 if settings.beta2 is not None else 0.999 if resnet else 0.98
    eps = settings.eps if settings.eps is not None else 1e-8 if resnet else 1e-6
    return torch.optim.AdamW(
        [
            {"params": [named[name] for name in groups.without], "weight_decay": 0.0},
            {"params": [named[name] for name in groups.decayed], "weight_decay": settings.weight_decay},
        ],
        lr=settings.lr, betas=(settings.beta1, beta2), eps=eps,
    )  # fmt: skip


def learning_rate(settings: TrainSettings, step: int) -> float:
    """Of a step, counted from 0: linear to lr over the warm-up, then half a cosine to 0, or constant."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    gone, all_steps = step - settings.warmup, settings.steps - settings.warmup
    return 0.5 * (1 + math.cos(math.pi * gone / all_steps)) * settings.lr
