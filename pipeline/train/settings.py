"""What a training run is: its settings, its presets, and which of them are the run's identity."""

import difflib
import math
from collections.abc import Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError
from schemas.recipe import digest

PASSING = frozenset({
    "accumulate", "checkpointing", "workers", "gpus", "threads", "decoders", "prefetch", "checkpoint_steps",
    "checkpoint_minutes", "keep", "max_failures", "max_bad", "evaluate_steps", "wait_minutes",
})  # fmt: skip
"""Settings that say how the weights are computed, not which."""


class TrainSettings(BaseModel):
    """PASSING ones may change between two starts of one run; all others are its identity."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    arch: str = Field("pairmill-tiny", description="an architecture of open_clip's or ours")
    init: str | None = Field(None, description="weights to start from: a folder, a file or a tag of open_clip's")
    freeze: Literal["image", "text"] | None = Field(None, description="a tower that stays as it is")
    loss: Literal["clip", "siglip"] = "clip"

    batch_size: int = Field(256, ge=2, description="samples a step, over all workers")
    samples: int = Field(100_000, ge=1, description="samples to see; steps = samples / batch_size, rounded up")
    lr: float = Field(5e-4, gt=0)
    beta1: float = Field(0.9, ge=0, lt=1)
    beta2: float | None = Field(None, ge=0, lt=1, description="default: 0.98, and 0.999 for ResNets")
    eps: float | None = Field(None, gt=0, description="default: 1e-6, and 1e-8 for ResNets")
    weight_decay: float = Field(0.2, ge=0)
    warmup: int = Field(100, ge=0, description="steps")
    schedule: Literal["cosine", "constant"] = "cosine"
    clip_norm: float | None = Field(None, gt=0, description="most that the gradient's norm may be")
    precision: Literal["fp32", "bf16"] = "fp32"
    crop: Literal["random", "center"] = Field("random", description="the square that is cut out of a resized image")
    sample_weights: bool = Field(False, description="a sample of weight w counts w times in the loss")
    data_weights: list[float] | None = Field(None, description="each dataset's share of a batch; default: as one set")
    seed: int = Field(0, ge=0)

    accumulate: int = Field(1, ge=1, description="parts a worker's batch is computed in")
    checkpointing: bool = Field(False, description="recompute activations to save memory")
    workers: int = Field(1, ge=1, description="Ray workers")
    gpus: bool | None = Field(None, description="default: where the cluster has them")
    wait_minutes: float = Field(0, ge=0, description="for nodes that an autoscaler brings, before training begins")
    threads: int | None = Field(None, ge=1, description="torch threads a worker; default: its share")
    decoders: int = Field(1, ge=1, description="decode processes a worker")
    prefetch: int = Field(3, ge=1, description="batches a worker decodes ahead")
    checkpoint_steps: int | None = Field(None, ge=1, description="steps between checkpoints")
    checkpoint_minutes: float = Field(10, gt=0, description="where checkpoint_steps is not given")
    keep: int = Field(3, ge=1, description="checkpoints that stay")
    max_failures: int = Field(3, ge=-1, description="losses of a worker to survive; -1: any number")
    max_bad: float = Field(0.1, ge=0, le=1, description="share of samples that may fail to decode")
    evaluate_steps: int | None = Field(None, ge=1, description="steps between evaluations on --val")

    @property
    def steps(self) -> int:
        return math.ceil(self.samples / self.batch_size)

    def identity(self) -> dict[str, Any]:
        """The settings that determine the weights; those that only say how they are computed are left out."""
        own = self.model_dump(mode="json")
        return {name: value for name, value in own.items() if name not in PASSING}

    def fingerprint(self) -> str:
        return digest({"train": 1, **self.identity()})


def _paper(arch: str, lr: float, **more: Any) -> dict[str, Any]:
    """Radford et al. 2021 (arXiv:2103.00020), tables 18 to 20: 32 epochs of 400 million pairs."""
    return {
        "arch": arch, "lr": lr, "batch_size": 32_768, "samples": 12_800_000_000, "warmup": 2_000, "weight_decay": 0.2,
        "precision": "bf16", "checkpointing": True, **more,
    }  # fmt: skip


def _datacomp(arch: str, batch_size: int, samples: int, **more: Any) -> dict[str, Any]:
    """Gadre et al. 2023 (arXiv:2304.14108), its scale_configs.py."""
    return {
        "arch": arch, "batch_size": batch_size, "samples": samples, "lr": 5e-4, "warmup": 500, "weight_decay": 0.2,
        "precision": "bf16", **more,
    }  # fmt: skip


PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"arch": "pairmill-tiny", "batch_size": 128, "samples": 100_000, "lr": 1e-3, "warmup": 50},
    "clip-rn50": _paper("RN50-quickgelu", 5e-4),
    "clip-rn101": _paper("RN101-quickgelu", 5e-4),
    "clip-rn50x4": _paper("RN50x4-quickgelu", 5e-4),
    "clip-rn50x16": _paper("RN50x16-quickgelu", 4e-4),
    "clip-rn50x64": _paper("RN50x64-quickgelu", 3.6e-4),
    "clip-vit-b-32": _paper("ViT-B-32-quickgelu", 5e-4),
    "clip-vit-b-16": _paper("ViT-B-16-quickgelu", 5e-4),
    "clip-vit-l-14": _paper("ViT-L-14-quickgelu", 4e-4),
    # One more epoch at the higher resolution, from the weights of clip-vit-l-14: give init.
    "clip-vit-l-14-336": _paper("ViT-L-14-336-quickgelu", 2e-5, samples=400_000_000),
    "datacomp-small": _datacomp("ViT-B-32", 4_096, 12_800_000),
    "datacomp-medium": _datacomp("ViT-B-32", 4_096, 128_000_000),
    "datacomp-large": _datacomp("ViT-B-16", 8_192, 1_280_000_000),
    "datacomp-xlarge": _datacomp("ViT-L-14", 90_112, 12_800_000_000, lr=1e-3, warmup=10_000, beta2=0.95),
}


def parse_settings(preset: str | None, changes: Sequence[str]) -> TrainSettings:
    """A preset with `key=value` changes on top. Raises InputError naming the key and the nearest known one."""
    if preset is not None and preset not in PRESETS:
        raise InputError(f"--preset {preset}: there is none{_nearest(preset, list(PRESETS))}")
    chosen = dict(PRESETS[preset]) if preset else {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"--set {change}: expected key=value")
        if key not in TrainSettings.model_fields:
            raise InputError(f"--set {key}: there is no such setting{_nearest(key, list(TrainSettings.model_fields))}")
        chosen[key] = _value(value)
    try:
        return TrainSettings(**chosen)
    except ValidationError as error:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"])
        raise InputError(f"--set {name}={first['input']}: {first['msg']}") from None


def _value(text: str) -> Any:
    try:
        return float(text)  # YAML 1.1 takes 1e-3 for text
    except ValueError:
        pass
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _nearest(name: str, known: list[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
