"""An encoder with its weights: pixels and token ids in, vectors out."""

from contextlib import ExitStack
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.encoders import hugging_face, open_clip
from pipeline.encoders.identity import SEED, weights_sha256
from pipeline.encoders.preprocess import Preprocess
from pipeline.encoders.source import Source, find
from pipeline.encoders.tokens import Tokenizer, Tokens, lengths, tokenizer
from pipeline.errors import InputError
from schemas.recipe import Encoder

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class Towers(Protocol):
    model: Any
    trims: bool

    def images(self, pixels: Tensor) -> Tensor: ...
    def pooled(self, pixels: Tensor) -> Tensor: ...
    def texts(self, tokens: Tensor) -> Tensor: ...


class LoadedEncoder:
    """Two towers on a device, and their tokenizer.

    `dim` is the length of the vectors, which are not normalised. `text_lengths_matter` says that cutting the padding
    behind a batch's longest text changes nothing but the time: `encode_texts` then takes any width up to `context`.
    """

    def __init__(
        self, source: Source, towers: Towers, dim: int, arch: str, preprocess: Preprocess, tokenize: Tokenizer,
        device: str,
    ) -> None:  # fmt: skip
        self.name = source.settings.name
        self.arch = arch
        self.dim = dim
        self.weights_sha256 = weights_sha256(source)
        self.preprocess = preprocess
        self.tokenize = tokenize
        self.context = tokenize.context
        self.text_lengths_matter = towers.trims
        self.device = torch.device(device)
        self.dtype = _DTYPES[source.settings.dtype]
        # As trained, whatever the towers' precision; its softmax is what zero-shot probabilities are.
        self.logit_scale = float(towers.model.logit_scale.detach().float().exp())
        towers.model.eval().requires_grad_(False).to(device=self.device, dtype=self.dtype)
        self._towers = towers
        self._mean = torch.tensor(preprocess.mean, device=self.device).view(1, 3, 1, 1)
        self._std = torch.tensor(preprocess.std, device=self.device).view(1, 3, 1, 1)

    def text_lengths(self, tokens: Tokens) -> Tokens:
        """Ids of each text [n] up to its end, the end included: what a batch may be cut to."""
        return lengths(tokens, self.tokenize.end)

    @torch.inference_mode()
    def image_features(self, pixels: Tensor) -> Tensor:
        """uint8 [n, 3, h, w] on any device → float32 [n, dim] on the encoder's."""
        return self._towers.images(self._input(pixels)).float()

    @torch.inference_mode()
    def image_pooled(self, pixels: Tensor) -> Tensor:
        """As `image_features`, before the projection into the embedding space, where the tower has one: [n, width]."""
        return self._towers.pooled(self._input(pixels)).float()

    def _input(self, pixels: Tensor) -> Tensor:
        scaled = pixels.to(self.device, non_blocking=True).float().div_(255).sub_(self._mean).div_(self._std)
        return scaled.to(self.dtype)

    @torch.inference_mode()
    def text_features(self, tokens: Tensor) -> Tensor:
        """int64 [n, width] on any device → float32 [n, dim] on the encoder's."""
        return self._towers.texts(tokens.to(self.device, non_blocking=True)).float()

    def encode_images(self, pixels: NDArray[np.uint8] | Tensor) -> NDArray[np.float32]:
        """uint8 [n, 3, h, w] as `to_pixels` makes them → [n, dim]."""
        features = self.image_features(torch.as_tensor(pixels))
        vectors: NDArray[np.float32] = features.cpu().numpy()
        return vectors

    def encode_texts(self, tokens: NDArray[np.int64] | Tensor) -> NDArray[np.float32]:
        """int64 [n, width] → [n, dim]; width is `context`, or less where `text_lengths_matter`."""
        features = self.text_features(torch.as_tensor(tokens))
        vectors: NDArray[np.float32] = features.cpu().numpy()
        return vectors


def made(settings: Encoder, device: str) -> LoadedEncoder:
    """As `pipeline.encoders.load.load`."""
    source = find(settings)
    tokenize = tokenizer(source)
    if source.kind == "hugging_face":
        towers: Towers
        towers, dim, config = hugging_face.model_of(source)
        vision, text = config.vision_config, config.text_config
        told = hugging_face.preprocess_of(source, vision.image_size)
        _check_tokens(source, tokenize, text.max_position_embeddings, text.vocab_size)
        arch = (
            settings.arch or f"{config.model_type} {vision.hidden_size}x{vision.num_hidden_layers}/{vision.patch_size}"
        )
        return LoadedEncoder(source, towers, dim, arch, preprocess_from(source, told), tokenize, device)
    if source.kind == "untrained":
        assert source.config is not None
        model, said = _untrained(source.config, source.place), source.config
    else:
        model, said = open_clip.model_of(source)
    text_cfg = said["text_cfg"]
    _check_tokens(source, tokenize, text_cfg.get("context_length", 77), text_cfg.get("vocab_size", 49408))
    told = open_clip.preprocess_of(source, model)
    arch = settings.arch or next(iter(open_clip.known_as(said)), "unnamed")
    towers = open_clip.OpenClipTowers(model)
    return LoadedEncoder(source, towers, said["embed_dim"], arch, preprocess_from(source, told), tokenize, device)


def _untrained(config: dict[str, Any], place: str) -> nn.Module:
    """The model as drawn from SEED, on the CPU whatever the device; the process's own generator is left as it was."""
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[]))
        torch.manual_seed(SEED)
        return open_clip.build(config, place)


def _check_tokens(source: Source, tokenize: Tokenizer, context: int, vocabulary: int) -> None:
    if tokenize.context != context:
        raise InputError(
            f"{source.place}: its tokenizer gives {tokenize.context} ids a text, its text tower takes {context}"
        )
    if tokenize.largest >= vocabulary:
        raise InputError(
            f"{source.place}: its tokenizer's ids go to {tokenize.largest}, the text tower's vocabulary is {vocabulary}"
        )


def preprocess_from(source: Source, told: dict[str, Any]) -> Preprocess:
    rows, columns = told["size"]
    mean, std = (tuple(float(value) for value in told[key]) for key in ("mean", "std"))
    if len(mean) != 3 or len(std) != 3 or 0 in std:
        raise InputError(f"{source.place}: mean {told['mean']} and std {told['std']} are not three numbers each")
    # Training's "random" is bicubic here, as open_clip has it.
    interpolation: Literal["bicubic", "bilinear"] = "bilinear" if told["interpolation"] == "bilinear" else "bicubic"
    if told["resize_mode"] not in ("shortest", "longest", "squash"):
        raise InputError(f"{source.place}: resize_mode {told['resize_mode']!r} is none of shortest, longest, squash")
    return Preprocess(
        (rows, columns), (mean[0], mean[1], mean[2]), (std[0], std[1], std[2]), interpolation, told["resize_mode"],
        int(told["fill_color"]),
    )  # fmt: skip
