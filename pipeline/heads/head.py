"""A head: a small network over an encoder's image vectors that gives score columns.

On disk it is NAME.json beside NAME.safetensors. The JSON says

    {"format": 1, "column": "nsfw", "encoder_sha256": "…", "input": "unit", "normalisation": "mean_std",
     "layers": [768, 64, 512, 256, 1], "activation": ["relu", "relu", "relu", "sigmoid"], "labels": [], "source": "…"}

and the safetensors file has float tensors `layers.<i>.weight` [layers[i+1], layers[i]] and `layers.<i>.bias`
[layers[i+1]], i from 0, and with `mean_std` also `mean` and `std` [layers[0]].

A model over pixels (LAION's watermark detector) is a head too: `"input": "pixels"`, no `encoder_sha256`, and a
`backbone` of timm's whose pooled features its layers read; the backbone's tensors have the prefix `backbone.`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.encoders.preprocess import Preprocess
from pipeline.errors import InputError

Floats = npt.NDArray[np.float32]
BLOCK: Final = 8_192
"""Rows evaluated at a time: the widest published layer is 2,048 floats, 64 MiB of them."""
BACKBONE: Final = "backbone."
NAME: Final = re.compile(r"[a-z][a-z0-9_]*")


class Backbone(BaseModel):
    """A model of timm's without its classifier, and how its input is made of an image."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arch: str
    size: tuple[int, int]
    """Height and width of the input."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"

    def preprocess(self) -> Preprocess:
        return Preprocess(self.size, self.mean, self.std, self.interpolation, self.resize_mode)


class Spec(BaseModel):
    """The JSON of a head."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    column: str = Field(pattern=rf"^{NAME.pattern}$")
    """What the score is called, e.g. aesthetic."""
    encoder_sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")
    """The weights of the encoder whose vectors it reads; none for pixels."""
    input: Literal["unit", "raw", "pixels"] = "unit"
    """unit: vectors of length 1; raw: as the tower gives them; pixels: what the backbone makes of the image."""
    backbone: Backbone | None = None
    normalisation: Literal["none", "mean_std"] = "none"
    """mean_std: the first layer reads (x − mean) / std."""
    layers: list[int] = Field(min_length=2)
    """Widths, from the vector's to the output's."""
    activation: list[Literal["none", "relu", "sigmoid", "softmax"]]
    """One a layer."""
    labels: list[str] = []
    """Names of the outputs: columns are <column>_<label>. One output may go without, as the column itself."""
    source: str = ""
    """Where it comes from, for people."""

    @model_validator(mode="after")
    def _shapes(self) -> "Spec":
        pixels = self.input == "pixels"
        if pixels != (self.backbone is not None) or pixels != (self.encoder_sha256 is None):
            raise ValueError("give encoder_sha256 for a head over vectors, backbone for one over pixels")
        if len(self.activation) != len(self.layers) - 1:
            raise ValueError(f"activation has {len(self.activation)} entries for {len(self.layers) - 1} layers")
        if "softmax" in self.activation[:-1]:
            raise ValueError("softmax is an activation of the last layer alone")
        if min(self.layers) < 1:
            raise ValueError("a layer is at least 1 wide")
        if len(self.labels) != self.layers[-1] and (self.labels or self.layers[-1] != 1):
            raise ValueError(f"{len(self.labels)} labels for {self.layers[-1]} outputs")
        if len(set(self.labels)) < len(self.labels) or not all(NAME.fullmatch(label) for label in self.labels):
            raise ValueError("labels are names of their own of lower-case letters, digits and underscores")
        return self

    def columns(self, name: str) -> list[str]:
        """Its columns under the name that a recipe gives it."""
        return [f"{name}_{label}" for label in self.labels] or [name]

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every tensor, the backbone's aside."""
        shapes: dict[str, tuple[int, ...]] = {}
        for i in range(len(self.activation)):
            shapes[f"layers.{i}.weight"] = (self.layers[i + 1], self.layers[i])
            shapes[f"layers.{i}.bias"] = (self.layers[i + 1],)
        if self.normalisation == "mean_std":
            shapes |= {"mean": (self.layers[0],), "std": (self.layers[0],)}
        return shapes


@dataclass(frozen=True)
class Head:
    spec: Spec
    tensors: Mapping[str, Floats]
    backbone: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict)
    """Of a head over pixels: its tensors as timm names them."""


@dataclass(frozen=True)
class _Layer:
    weight: Floats
    """[inputs, outputs]"""
    bias: Floats
    activation: str


class Evaluator:
    """A head ready to run. Layers without an activation between them are multiplied into one, and so is the
    normalisation: in float64, so that results differ from the layers' own in the last bits alone."""

    def __init__(self, head: Head) -> None:
        spec = head.spec
        self.raw = spec.input == "raw"
        self.layers: list[_Layer] = []
        weight: npt.NDArray[np.float64] = np.eye(spec.layers[0])
        bias: npt.NDArray[np.float64] = np.zeros(spec.layers[0])
        if spec.normalisation == "mean_std":
            std = head.tensors["std"].astype(np.float64)
            weight, bias = np.diag(1 / std), -head.tensors["mean"].astype(np.float64) / std
        for i, activation in enumerate(spec.activation):
            own = head.tensors[f"layers.{i}.weight"].astype(np.float64).T
            weight, bias = weight @ own, bias @ own + head.tensors[f"layers.{i}.bias"].astype(np.float64)
            if activation != "none" or i == len(spec.activation) - 1:
                self.layers.append(_Layer(weight.astype(np.float32), bias.astype(np.float32), activation))
                weight, bias = np.eye(spec.layers[i + 1]), np.zeros(spec.layers[i + 1])

    def __call__(self, vectors: Floats, norms: Floats | None = None) -> Floats:
        """Scores [n, outputs] of unit vectors or a backbone's features [n, dim]; `norms` [n]: the lengths that vectors
        had, for a head of raw input."""
        made = [self._block(vectors[at : at + BLOCK], norms, at) for at in range(0, len(vectors), BLOCK)]
        return np.concatenate(made) if made else np.empty((0, self.layers[-1].weight.shape[1]), np.float32)

    def _block(self, rows: Floats, norms: Floats | None, at: int) -> Floats:
        if self.raw:
            assert norms is not None
            rows = rows * norms[at : at + BLOCK, None]
        for layer in self.layers:
            rows = rows @ layer.weight
            rows += layer.bias
            rows = _activate(rows, layer.activation)
        return rows


def _activate(values: Floats, activation: str) -> Floats:
    """In place where it can be."""
    if activation == "relu":
        return np.maximum(values, 0, out=values)
    if activation == "sigmoid":
        with np.errstate(over="ignore"):
            return (1 / (1 + np.exp(-values))).astype(np.float32)
    if activation == "softmax":
        values -= values.max(axis=1, keepdims=True)
        np.exp(values, out=values)
        values /= values.sum(axis=1, keepdims=True)
    return values


def read_spec(data: bytes, place: str) -> Spec:
    """The JSON of a head; `place` names it in errors. Raises InputError."""
    try:
        return Spec.model_validate_json(data)
    except ValidationError as error:
        raise InputError(f"{place}: {one_line(error)}") from None


def one_line(error: ValidationError) -> str:
    """The first thing wrong, after its key."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    return f"{key + ': ' if key else ''}{message[:1].lower()}{message[1:]}"


def read_tensors(spec: Spec, data: bytes, place: str) -> Head:
    """The head of a spec and its safetensors file. Raises InputError naming the tensor that is not as the spec says."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        found = load(data)
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(f"{place}: is no safetensors file of floats: {error}") from None
    backbone = {name.removeprefix(BACKBONE): found.pop(name) for name in list(found) if name.startswith(BACKBONE)}
    if backbone and spec.backbone is None:
        raise InputError(f"{place}: has a backbone's tensors, its .json none")
    return Head(spec, checked(spec, found, place), backbone)


def checked(spec: Spec, tensors: Mapping[str, npt.NDArray[np.generic]], place: str) -> dict[str, Floats]:
    """The tensors as float32, once they are those that the spec says. Raises InputError."""
    wanted = spec.tensors()
    if odd := sorted(wanted.keys() ^ tensors.keys()):
        said = "is missing" if odd[0] in wanted else "belongs to no layer"
        raise InputError(f"{place}: tensor {odd[0]} {said}")
    for name, shape in wanted.items():
        if tensors[name].shape != shape:
            raise InputError(f"{place}: tensor {name} is {list(tensors[name].shape)}, not {list(shape)}")
        if not np.issubdtype(tensors[name].dtype, np.floating) or not np.isfinite(tensors[name]).all():
            raise InputError(f"{place}: tensor {name} holds what is no finite float")
    if "std" in wanted and not (np.asarray(tensors["std"], np.float64) > 0).all():
        raise InputError(f"{place}: tensor std holds what is not above 0")
    return {name: np.ascontiguousarray(tensors[name], np.float32) for name in wanted}


def written(head: Head) -> tuple[bytes, bytes]:
    """A head as its two files: JSON and safetensors."""
    from safetensors.numpy import save

    backbone = {f"{BACKBONE}{name}": values for name, values in head.backbone.items()}
    told = head.spec.model_dump_json(indent=1, exclude_none=True)
    return told.encode() + b"\n", save({**head.tensors, **backbone})
