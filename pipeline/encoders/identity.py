"""Who an encoder is: digests of its weights, config and tokenizer. Needs no torch."""

import hashlib
import json
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.encoders.source import Source, find
from pipeline.encoders.tokens import tokenizer_files
from schemas.recipe import Encoder, digest

SEED = 0
"""Of untrained weights."""


@dataclass(frozen=True)
class Identity:
    """`digest` covers the weights, the model config, the preprocessing that is told and the tokenizer's files; not
    the paths they lie under. The same bytes elsewhere are the same encoder.
    """

    name: str
    weights_sha256: str
    digest: str


def identify(settings: Encoder) -> Identity:
    """Raises InputError where something the encoder needs is missing; reads the weights' bytes, once a process."""
    source = find(settings)
    sha256 = weights_sha256(source)
    covered = {
        "weights": sha256,
        "config": source.config,
        "preprocess": {key: value for key, value in source.preprocess.items() if key not in ("url", "hf_hub")},
        "tokenizer": {path.name: file_sha256(path) for path in tokenizer_files(source)},
    }
    return Identity(settings.name, sha256, digest(covered))


def weights_sha256(source: Source) -> str:
    """sha256 of the weights' file; of several shards, of their digests in order of name.

    Untrained weights have no file: theirs is the sha256 of all that determines them (config, seed and the versions of
    what draws them), as a canonical JSON text. It is known without building the model.
    """
    if source.kind == "untrained":
        drawn = {"untrained": source.config, "seed": SEED, "versions": _versions()}
        return hashlib.sha256(json.dumps(drawn, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    digests = [file_sha256(path) for path in source.weights]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def file_sha256(path: Path) -> str:
    stat = path.stat()
    return _sha256(str(path.resolve()), stat.st_size, stat.st_mtime_ns)


@lru_cache(256)
def _sha256(path: str, size: int, changed: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {}
    for package in ("torch", "open_clip_torch", "timm"):
        try:
            found[package] = version(package).split("+")[0]  # the build for this or that GPU draws the same
        except PackageNotFoundError:
            found[package] = "none"
    return found
