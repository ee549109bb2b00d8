"""CLIP as the articles show it.

clip = pipeline.clip.load("checkpoints/latest")
clip.classify(["cat.jpg"], ["a cat", "a dog"], ["a photo of {}."])    # probabilities [1, 2]
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.embed.decode import decode_image
from pipeline.encoders.load import load as load_encoder
from pipeline.encoders.preprocess import to_pixels
from pipeline.errors import InputError
from pipeline.images.errors import ImageError
from schemas.recipe import Encoder

if TYPE_CHECKING:
    from pipeline.encoders.encoder import LoadedEncoder

BATCH = 64
"""Images, or texts, a forward."""

Vectors = NDArray[np.float32]
Picture = str | Path | bytes | Image.Image | NDArray[np.uint8]
"""A path, a file's bytes, a PIL image, or RGB uint8 [height, width, 3]."""


class Clip:
    """Two towers as one object; vectors are of unit length."""

    def __init__(self, encoder: "LoadedEncoder") -> None:
        self.encoder = encoder

    def encode_image(self, images: Iterable[Picture]) -> Vectors:
        """float32 [n, dim]. Raises InputError naming the image that cannot be decoded."""
        pixels = [self._pixels(image, number) for number, image in enumerate(images)]
        found = [
            self.encoder.encode_images(np.stack(pixels[at : at + BATCH]).transpose(0, 3, 1, 2))
            for at in range(0, len(pixels), BATCH)
        ]
        return unit(np.concatenate(found)) if found else np.zeros((0, self.encoder.dim), np.float32)

    def encode_text(self, texts: Sequence[str]) -> Vectors:
        """float32 [n, dim]."""
        return encode_texts(self.encoder, texts)

    def classify(
        self, images: Iterable[Picture], labels: Sequence[str], templates: Sequence[str] = ("a photo of a {}.",)
    ) -> Vectors:
        """Probability of each label, float32 [n, labels]: the softmax at the model's temperature (Radford et al., 3.1).

        Every label is put into every template ({} or {c}), and the prompts' vectors are averaged (3.1.4).
        """
        from pipeline.heads.labels import directions

        if not labels:
            raise InputError("classify: there are no labels")
        prompts = [[filled(template, label) for template in templates] for label in labels]
        weights = directions(prompts, labels, self.encoder)
        return softmax(self.encoder.logit_scale * (self.encode_image(images) @ weights.T))

    def _pixels(self, image: Picture, number: int) -> NDArray[np.uint8]:
        preprocess = self.encoder.preprocess
        if isinstance(image, Image.Image):
            return to_pixels(np.asarray(image.convert("RGB")), preprocess)
        if isinstance(image, np.ndarray):
            if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
                raise InputError(f"image {number}: expected uint8 [height, width, 3], got {image.dtype} {image.shape}")
            return to_pixels(image, preprocess)
        place = f"image {number}" if isinstance(image, bytes) else f"image {image}"
        try:
            data = image if isinstance(image, bytes) else Path(image).read_bytes()
            return decode_image(data, preprocess, False)
        except OSError as error:
            raise InputError(f"{place} cannot be read: {error.strerror}") from None
        except ImageError as error:
            raise InputError(f"{place} cannot be decoded: {error}") from None


def load(path: str | Path, arch: str | None = None, device: str | None = None) -> Clip:
    """A model that jobs.train wrote, or anything else `embed` takes. Raises InputError where it does not load."""
    try:
        import torch
    except ModuleNotFoundError:
        raise InputError("a CLIP needs torch and open_clip: pip install 'pairmill[encode]'") from None
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return Clip(load_encoder(Encoder(name="model", weights=str(path), arch=arch), device))


def encode_texts(encoder: "LoadedEncoder", texts: Sequence[str]) -> Vectors:
    """Unit vectors [n, dim]."""
    tokens = encoder.tokenize(texts)
    found = [encoder.encode_texts(tokens[at : at + BATCH]) for at in range(0, len(tokens), BATCH)]
    return unit(np.concatenate(found)) if found else np.zeros((0, encoder.dim), np.float32)


def filled(template: str, label: str) -> str:
    """A label put into a prompt template: {} or, as CLIP_benchmark writes it, {c}. Raises InputError for neither."""
    if "{}" not in template and "{c}" not in template:
        raise InputError(f"template {template!r} has neither {{}} nor {{c}} for the label")
    return template.replace("{c}", label).replace("{}", label)


def unit(vectors: NDArray[Any]) -> Vectors:
    """Rows divided by their length; a row of zeros stays one."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    made: Vectors = (vectors / np.where(lengths > 0, lengths, 1)).astype(np.float32)
    return made


def softmax(logits: NDArray[Any]) -> Vectors:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    made: Vectors = (raised / raised.sum(axis=1, keepdims=True)).astype(np.float32)
    return made
