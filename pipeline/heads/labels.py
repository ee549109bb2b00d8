"""Zero-shot columns: a list of labels and prompt templates, which an encoder's text tower makes into a head.

    score: probability          # of each label among them all (softmax at the encoder's logit scale); or cosine
    encoder: b32                # of the recipe's; where it has one alone it need not be said
    templates: ["a photo of a {}.", "a drawing of a {}."]
    labels:
      dog: [dog, puppy]         # column <name>_dog; every name in every template is averaged
      other: [landscape, building, text]

As CLIP does it (Radford et al. 2021, section 3.1.4 and its notebook): vectors of the prompts made unit, averaged and
made unit again.
"""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import InputError
from pipeline.heads.head import NAME, Head, Spec, one_line

if TYPE_CHECKING:
    from pipeline.encoders.encoder import LoadedEncoder

BATCH = 256
"""Prompts encoded at a time."""


def _named(value: object) -> object:
    """Labels given as a list are named after themselves."""
    if isinstance(value, list):
        named = [(re.sub(r"[^a-z0-9]+", "_", str(name).lower()).strip("_"), [name]) for name in value]
        if len(dict(named)) < len(named):
            raise ValueError("two labels have the same name; give them names: {name: [label]}")
        return dict(named)
    if isinstance(value, dict):
        return {key: [names] if isinstance(names, str) else names for key, names in value.items()}
    return value


class Labels(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    score: Literal["probability", "cosine"] = "probability"
    encoder: str | None = None
    templates: list[str] = Field(["{}"], min_length=1)
    labels: Annotated[dict[str, Annotated[list[str], Field(min_length=1)]], BeforeValidator(_named)]

    @model_validator(mode="after")
    def _usable(self) -> "Labels":
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no {{}} for the label")
        for label in self.labels:
            if not NAME.fullmatch(label):
                raise ValueError(f"label {label!r} is no name of lower-case letters, digits and underscores")
        if len(self.labels) < (2 if self.score == "probability" else 1):
            raise ValueError("a probability needs at least 2 labels to be divided among")
        return self

    def prompts(self, label: str) -> list[str]:
        return [template.replace("{}", name) for name in self.labels[label] for template in self.templates]

    def columns(self, name: str) -> list[str]:
        return [f"{name}_{label}" for label in self.labels]


def read_labels(data: bytes, place: str) -> Labels:
    """A file of labels. Raises InputError naming `place` and what is wrong."""
    try:
        given: Any = yaml.safe_load(data)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{place}: is no YAML: {' '.join(str(error).split())}") from None
    if not isinstance(given, dict):
        raise InputError(f"{place}: expected labels: and templates:, got {type(given).__name__}")
    try:
        return Labels.model_validate(given)
    except ValidationError as error:
        raise InputError(f"{place}: {one_line(error)}") from None


def directions(prompts: Sequence[Sequence[str]], names: Sequence[str], encoder: "LoadedEncoder") -> NDArray[np.float64]:
    """A unit vector a label [labels, dim]: of its prompts' unit vectors, the mean.

    Raises InputError naming the label whose prompts have no direction.
    """
    rows = []
    for name, texts in zip(names, prompts, strict=True):
        tokens = encoder.tokenize(texts)
        made = [encoder.encode_texts(tokens[at : at + BATCH]) for at in range(0, len(tokens), BATCH)]
        vectors = np.concatenate(made).astype(np.float64)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        mean = (vectors / np.where(lengths > 0, lengths, np.nan)).mean(axis=0)
        length = np.linalg.norm(mean)
        if not np.isfinite(length) or length == 0:
            raise InputError(f"the prompts of {name} have no direction in {encoder.name}")
        rows.append(mean / length)
    return np.stack(rows)


def zero_shot(labels: Labels, name: str, encoder: "LoadedEncoder") -> Head:
    """The labels as a linear head of this encoder. Raises InputError for a label whose prompts have no direction."""
    try:
        matrix = directions([labels.prompts(label) for label in labels.labels], list(labels.labels), encoder)
    except InputError as error:
        raise InputError(f"recipe embed.heads.{name}: {error}") from None
    chances = labels.score == "probability"
    if chances:
        matrix *= encoder.logit_scale
    spec = Spec(
        column=name, encoder_sha256=encoder.weights_sha256, layers=[matrix.shape[1], len(matrix)],
        activation=["softmax" if chances else "none"], labels=list(labels.labels),
        source=f"zero-shot: {labels.model_dump_json()}",
    )  # fmt: skip
    bias = np.zeros(len(matrix), np.float32)
    return Head(spec, {"layers.0.weight": matrix.astype(np.float32), "layers.0.bias": bias})
