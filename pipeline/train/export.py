"""A checkpoint as others load it: open_clip's local-dir folder, with a model card."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save
from torch import Tensor

from pipeline.encoders.preprocess import Preprocess
from pipeline.train.ledger import LEDGER

WEIGHTS = "open_clip_model.safetensors"
CONFIG = "open_clip_config.json"


def write_model(
    folder: Path, state: dict[str, Tensor], config: dict[str, Any], preprocess: Preprocess, tokenizer: list[Path]
) -> str:
    """Write weights, config and tokenizer files; returns the weights' sha256.

    `open_clip.create_model_and_transforms('local-dir:FOLDER')` and `embed` load the folder as it is.
    """
    data = save({name: value.contiguous() for name, value in state.items()})
    (folder / WEIGHTS).write_bytes(data)
    told = {
        "model_cfg": config,
        "preprocess_cfg": {
            "mean": list(preprocess.mean), "std": list(preprocess.std), "interpolation": preprocess.interpolation,
            "resize_mode": preprocess.resize_mode,
        },
    }  # fmt: skip
    (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n")
    for path in tokenizer:
        shutil.copyfile(path, folder / path.name)
    return hashlib.sha256(data).hexdigest()


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """README.md: what the model is, what it saw, how it was trained and measured."""
    data = "\n".join(
        f"| `{one['place']}` | {one['samples']:,} | {one['seen']:.2f} | `{one['fingerprint'][:16]}` "
        f"| {one['licences'] or 'not stated'} |"
        for one in card["data"]
    )
    settings = "\n".join(f"| {name} | {value} |" for name, value in card["settings"].items())
    metrics = "\n".join(f"| {name} | {value:.6g} |" for name, value in card["metrics"].items())
    (folder / "README.md").write_text(f"""---
library_name: open_clip
pipeline_tag: zero-shot-image-classification
tags: [clip, pairmill]
---
# {card["settings"]["arch"]}, step {card["step"]:,} of {card["steps"]:,}

Two towers trained contrastively by Pairmill on {card["samples_seen"]:,} samples. Weights sha256
`{card["weights_sha256"]}`.

    import open_clip
    model, _, preprocess = open_clip.create_model_and_transforms("local-dir:FOLDER")
    tokenizer = open_clip.get_tokenizer("local-dir:FOLDER")

## Data
| dataset | samples | times seen | fingerprint | licences |
| --- | --- | --- | --- | --- |
{data}

Fingerprint of all: `{card["fingerprint"]}`. `{LEDGER}` says which samples were seen, and when: the order follows from
the seed and the fingerprint, so that every sample's steps can be derived (`pipeline.train.ledger.seen`).
{card["failed"]:,} times a sample could not be decoded and was left out.

## Recipe
| setting | value |
| --- | --- |
{settings}

## Metrics, of the last step
| metric | value |
| --- | --- |
{metrics}
""")
