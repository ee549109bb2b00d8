"""The towers a run trains: as its architecture draws them, or from weights."""

from contextlib import ExitStack
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.encoders import checkpoint, open_clip
from pipeline.encoders.encoder import preprocess_from
from pipeline.encoders.preprocess import Preprocess
from pipeline.encoders.source import Source, find, read_json, registered
from pipeline.encoders.tokens import Tokenizer, tokenizer, tokenizer_files
from pipeline.errors import InputError
from pipeline.train.optimiser import is_resnet
from pipeline.train.settings import TrainSettings
from schemas.recipe import Encoder

LOG_SCALE = {"clip": float(np.log(1 / 0.07)), "siglip": float(np.log(10))}
MOST_LOG_SCALE = float(np.log(100))
BIAS = -10.0


@dataclass
class Towers:
    """A model on its device, and what goes into it."""

    model: Any
    config: dict[str, Any]
    """open_clip's model_cfg."""
    preprocess: Preprocess
    tokenize: Tokenizer
    source: Source
    frozen: str | None

    def features(self, images: Tensor, tokens: Tensor, autocast: bool) -> tuple[Tensor, Tensor]:
        """uint8 [b, rows, columns, 3] and ids [b, context] → unit vectors [b, d] each."""
        kind = next(self.model.parameters()).dtype
        mean, std = (torch.tensor(value, device=images.device) for value in (self.preprocess.mean, self.preprocess.std))
        scaled = images.float().div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2).contiguous().to(kind)
        with torch.autocast(images.device.type, torch.bfloat16, enabled=autocast):
            found = []
            for tower, encode, given in (
                ("image", self.model.encode_image, scaled),
                ("text", self.model.encode_text, tokens),
            ):
                with torch.set_grad_enabled(torch.is_grad_enabled() and tower != self.frozen):
                    found.append(encode(given))
        return F.normalize(found[0].to(kind), dim=-1), F.normalize(found[1].to(kind), dim=-1)

    def train(self) -> None:
        """Training mode, but for a frozen tower, whose statistics and dropout stay out."""
        self.model.train()
        if self.frozen == "image":
            self.model.visual.eval()
        elif self.frozen == "text":
            for name in _TEXT:
                if hasattr(self.model, name) and isinstance(getattr(self.model, name), nn.Module):
                    getattr(self.model, name).eval()


_TEXT = ("text", "transformer", "token_embedding", "ln_final", "positional_embedding", "text_projection", "cls_emb")


def make_towers(settings: TrainSettings, device: str = "cpu") -> Towers:
    """Raises InputError where the architecture is unknown, or `init` is not of it."""
    source = source_of(settings)
    if source.kind == "hugging_face":
        raise InputError(f"init {settings.init}: is a Hugging Face folder; training starts from open_clip's weights")
    config = deepcopy(source.config or {})
    config["init_logit_scale"] = LOG_SCALE[settings.loss]
    config.pop("init_logit_bias", None)
    if settings.loss == "siglip":
        config["init_logit_bias"] = BIAS
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(settings.seed)
        model: Any = open_clip.build(config, "train")
    if settings.init:
        loaded, _ = open_clip.model_of(source)
        state = loaded.state_dict()
        if settings.loss == "siglip" and "logit_bias" not in state:
            state.pop("logit_scale")  # of another loss
        checkpoint.put(model, state, "train", f"init {settings.init}")
    preprocess = preprocess_from(source, open_clip.preprocess_of(source, model))
    _freeze(model, settings.freeze)
    if settings.checkpointing:
        model.set_grad_checkpointing(True)
    if settings.accumulate > 1 and settings.freeze != "image" and is_resnet(model):
        raise InputError(
            f"accumulate {settings.accumulate}: {settings.arch} has batch statistics, whose gradients no parts of a "
            "batch can give; use accumulate 1 with checkpointing true, or more workers"
        )
    return Towers(model.to(device), config, preprocess, tokenizer(source), source, settings.freeze)


def source_of(settings: TrainSettings) -> Source:
    """`arch` may also be a file: open_clip's model_cfg as JSON."""
    if settings.arch.endswith(".json"):
        own = Encoder(name="train", arch=settings.arch, weights="untrained")
        config = read_json(Path(settings.arch), own)
        if settings.init is None:
            return Source("untrained", own, config=config)
        return replace(find(Encoder(name="train", weights=settings.init)), config=config)
    source = find(Encoder(name="train", arch=settings.arch, weights=settings.init or "untrained"))
    return replace(source, config=registered(source.settings))


def _freeze(model: Any, tower: str | None) -> None:
    if tower is None:
        return
    for name, parameter in model.named_parameters():
        if name.startswith("logit_"):
            continue
        if (tower == "image") == name.startswith("visual."):
            parameter.requires_grad_(False)


def tokenizer_paths(towers: Towers) -> list[Any]:
    return list(tokenizer_files(towers.source))
