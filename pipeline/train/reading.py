"""One sample at a time: its bytes, pixels and token ids."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.embed.decode import Pixels
from pipeline.encoders.preprocess import Preprocess
from pipeline.encoders.tokens import Tokenizer
from pipeline.images.errors import ImageError
from pipeline.train.crop import training_pixels
from pipeline.train.index import SampleIndex
from pipeline.train.order import mix

THREADS = 16
"""Reads under way at a time: in S3 each is a round trip."""


class Reader:
    def __init__(self, index: Path, preprocess: Preprocess, tokenize: Tokenizer, random_crop: bool, seed: int) -> None:
        self._index = SampleIndex(index)
        self._preprocess, self._tokenize = preprocess, tokenize
        self._random_crop, self._seed = random_crop, seed
        self._remote = any("://" in uri for uri, _ in self._index.files)
        self._threads = ThreadPoolExecutor(THREADS) if self._remote else None
        self.no_tokens: NDArray[np.int64] = tokenize([""])[0]

    def images(self, samples: Sequence[int]) -> list[bytes | ImageError]:
        """Each one's bytes, or why there are none."""
        return list((self._threads.map if self._threads else map)(self._image, samples))

    def _image(self, sample: int) -> bytes | ImageError:
        try:
            data = self._index.read(sample)
        except FileNotFoundError as error:
            return ImageError("decode_error", f"{error.filename or error} is gone")
        if len(data) != int(self._index.size[sample]):
            return ImageError("decode_error", f"{len(data)} of {int(self._index.size[sample])} bytes are left")
        recorded = bytes(self._index.sha256[sample])
        if any(recorded) and hashlib.sha256(data).digest() != recorded:
            return ImageError("hash_mismatch", f"not the image recorded, {recorded.hex()}")
        return data

    def pixels(self, image: bytes, position: int) -> Pixels:
        """`position`: of the sample in the run's stream, which its crop is drawn from. Raises ImageError."""
        place = mix(self._seed, 0xC209, position) / 2**64 if self._random_crop else None
        return training_pixels(image, self._preprocess, place)

    def tokens(self, sample: int) -> NDArray[np.int64]:
        """Raises ImageError where there is no text."""
        text = self._index.text(sample)
        if not text.strip():
            raise ImageError("decode_error", "its text is empty")
        tokens: NDArray[np.int64] = self._tokenize([text])[0]
        return tokens
