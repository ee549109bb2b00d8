"""A unit's images and captions through both towers, in batches that its rows alone determine.

Decode processes fill the ring ahead of the image tower; while they do, the text tower has its turn. Which of the two is
next depends on what is ready, but never what is in a batch.
"""

import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass
from queue import Empty, Queue
from threading import Lock
from types import MappingProxyType
from typing import Any, Final, Protocol

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.embed.decode_pool import COLUMNS, DecodePool
from pipeline.embed.ring import Ring, Shape
from pipeline.embed.token_process import TokenPool, Tokens
from pipeline.embed.vectors import Floats
from pipeline.encoders.preprocess import Preprocess

BUFFERS: Final = 4
"""Batches in the ring: one in the image tower, the others being decoded."""
TEXT_STEP: Final = 8
"""Batches of captions are cut to a multiple of so many tokens: few shapes to plan for."""


class Encoder(Protocol):
    """What the stage needs of pipeline.encoders.load.LoadedEncoder."""

    name: str
    dim: int
    arch: str
    weights_sha256: str
    preprocess: Preprocess
    text_lengths_matter: bool

    def encode_images(self, pixels: Any) -> Floats: ...

    def encode_texts(self, tokens: Tokens) -> Floats: ...

    def text_lengths(self, tokens: Tokens) -> NDArray[np.int64]: ...


class Beside(Protocol):
    """Another model over the same images: pipeline.heads.pixels.PixelModel."""

    preprocess: Preprocess
    outputs: int

    def __call__(self, pixels: NDArray[np.uint8]) -> Floats: ...


@dataclass(frozen=True)
class Encoded:
    """Vectors [rows, dim] as the towers gave them; row → (reason, detail) of the rows without an image.

    `beside`: what the models beside the encoder gave, [rows, outputs] each; NaN in rows without an image.
    """

    image: Floats
    text: Floats
    failed: dict[int, tuple[str, str]]
    beside: dict[str, Floats]


@dataclass(frozen=True)
class _Decoding:
    start: int
    rows: int
    buffer: int
    ready: "Future[dict[int, tuple[str, str]]]"


class Forward:
    """Both towers and what feeds them; units may run in several threads, which take turns at the towers. Close it.

    Memory beside the towers: the ring, BUFFERS batches of pixels (154 MB for 256 images of 224 x 224), and a unit's
    vectors. `spent`: wall seconds by part.
    """

    def __init__(
        self, root: str, encoder: Encoder, device: str, batch: int, scaled: bool, decoders: int, tokens: TokenPool,
        beside: Mapping[str, Beside] = MappingProxyType({}),
    ) -> None:  # fmt: skip
        height, width = encoder.preprocess.size
        self._encoder, self._device, self._batch, self._tokens = encoder, device, batch, tokens
        self._ring = Ring(Shape(BUFFERS, batch, height, width))
        self._beside = {
            name: (model, Ring(Shape(BUFFERS, batch, *model.preprocess.size))) for name, model in beside.items()
        }
        if device != "cpu":
            _pin(self._ring)
        others = [(model.preprocess, ring) for model, ring in self._beside.values()]
        self.decoders = DecodePool(root, encoder.preprocess, scaled, self._ring, decoders, others)
        self._free: Queue[int] = Queue()
        for buffer in range(BUFFERS):
            self._free.put(buffer)
        self._towers = Lock()
        self._most: dict[Any, int] = {}
        """Tower → the largest batch that memory has held."""
        self.spent: defaultdict[str, float] = defaultdict(float)

    def close(self) -> None:
        self.decoders.close()
        self._tokens.close()
        for ring in (self._ring, *(ring for _, ring in self._beside.values())):
            ring.close()

    def run(self, rows: pa.Table, batch_done: Callable[[], None] = lambda: None) -> Encoded:
        """Encode rows (caption and decode_pool.COLUMNS). Pairs that share a pool member or a caption share its vector.

        Raises PoolMismatchError where the pool does not hold what was recorded.
        """
        members, image_of = members_of(rows)
        captions, text_of = _unique(rows["caption"].fill_null(""))
        unit = _Unit(self, members, captions.to_pylist())
        try:
            while unit.step():
                batch_done()
        finally:
            unit.release()
        failed = {row: unit.failed[image] for row, image in enumerate(image_of.tolist()) if image in unit.failed}
        beside = {name: scores[image_of] for name, scores in unit.beside.items()}
        return Encoded(unit.images[image_of], unit.texts[text_of], failed, beside)

    def encode_images(self, buffer: int, rows: int) -> Floats:
        """Vectors [rows, dim] of the first images of a buffer."""
        pixels: Any = self._ring.pixels[buffer, :rows]
        with self._towers:
            if self._device == "cpu":
                return self._timed("image", self._encoder.encode_images, pixels.transpose(0, 3, 1, 2))
            import torch

            start = time.perf_counter()
            pixels = torch.from_numpy(pixels).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            self.spent["transfer"] += time.perf_counter() - start
            return self._timed("image", self._encoder.encode_images, pixels)

    def score_images(self, buffer: int, rows: int) -> dict[str, Floats]:
        """What each model beside the encoder makes of the same images, [rows, outputs]."""
        made = {}
        for name, (model, ring) in self._beside.items():
            with self._towers:
                made[name] = self._timed("beside", model, ring.pixels[buffer, :rows])
        return made

    def encode_texts(self, tokens: Tokens) -> Floats:
        """Vectors [rows, dim] of tokens [rows, context]."""
        with self._towers:
            return self._timed("text", self._encoder.encode_texts, tokens)

    def _timed(self, part: str, tower: Callable[[Any], Floats], inputs: Any) -> Floats:
        start = time.perf_counter()
        vectors = self._within_memory(part, tower, inputs)
        self.spent[part] += time.perf_counter() - start
        return vectors

    def _within_memory(self, part: str, tower: Callable[[Any], Floats], inputs: Any) -> Floats:
        """All inputs through a tower, by halves of halves where memory runs out; what fitted is remembered."""
        made: list[Floats] = []
        start = 0
        while start < len(inputs):
            piece = inputs[start : start + self._most.get(part, self._batch)]
            try:
                made.append(np.asarray(tower(piece), np.float32))
            except Exception as error:
                if len(piece) == 1 or not out_of_memory(error):
                    raise
                self._most[part] = len(piece) // 2
                _give_back()
                continue
            start += len(piece)
        return made[0] if len(made) == 1 else np.concatenate(made)


class _Unit:
    """The state of one `run`."""

    def __init__(self, forward: Forward, members: pa.Table, captions: Sequence[str]) -> None:
        self._forward, self._members = forward, members
        self._batch, self._free = forward._batch, forward._free
        self._encoder = forward._encoder
        self.images: Floats = np.zeros((members.num_rows, self._encoder.dim), np.float32)
        self.texts: Floats = np.zeros((len(captions), self._encoder.dim), np.float32)
        self.beside: dict[str, Floats] = {
            name: np.full((members.num_rows, model.outputs), np.nan, np.float32)
            for name, (model, _) in forward._beside.items()
        }
        self.failed: dict[int, tuple[str, str]] = {}
        self._starts = deque(range(0, members.num_rows, self._batch))
        self._decoding: deque[_Decoding] = deque()
        self._tokens = forward._tokens.tokenise(captions)
        self._text_batches: deque[tuple[NDArray[np.int64], Tokens]] = deque()

    def step(self) -> bool:
        """Have one more batch encoded; False where there is none left."""
        self._fill()
        if self._decoding and self._decoding[0].ready.done():
            self._image_batch()
        elif self._text_ready():
            rows, tokens = self._text_batches.popleft()
            self.texts[rows] = self._forward.encode_texts(tokens)
        elif self._decoding:
            coming: list[Future[Any]] = [part for part in self._tokens if not part.done()]
            wait([self._decoding[0].ready, *coming], return_when=FIRST_COMPLETED)
        elif self._starts:
            self._decode(self._free.get())
        elif self._tokens:
            wait(self._tokens)
        else:
            return False
        return True

    def release(self) -> None:
        """Wait for what is being decoded and give its buffers back: nothing of it at the end of a whole run."""
        while self._decoding:
            left = self._decoding.popleft()
            wait([left.ready])
            self._free.put(left.buffer)

    def _fill(self) -> None:
        """Have more decoded while buffers are free."""
        while self._starts:
            try:
                buffer = self._free.get_nowait()
            except Empty:
                return
            self._decode(buffer)

    def _decode(self, buffer: int) -> None:
        start = self._starts.popleft()
        members = self._members.slice(start, self._batch)
        self._decoding.append(
            _Decoding(start, members.num_rows, buffer, self._forward.decoders.decode(buffer, members))
        )

    def _image_batch(self) -> None:
        batch = self._decoding[0]
        failed = batch.ready.result()
        self.images[batch.start : batch.start + batch.rows] = self._forward.encode_images(batch.buffer, batch.rows)
        for name, scores in self._forward.score_images(batch.buffer, batch.rows).items():
            scores[list(failed)] = np.nan
            self.beside[name][batch.start : batch.start + batch.rows] = scores
        self.failed.update({batch.start + place: why for place, why in failed.items()})
        self._decoding.popleft()
        self._free.put(batch.buffer)

    def _text_ready(self) -> bool:
        """Whether a batch of captions can be encoded: once all are tokenised they are cut into batches by length."""
        if self._tokens and all(part.done() for part in self._tokens):
            tokens = np.concatenate([part.result() for part in self._tokens])
            self._tokens = []
            self._text_batches = deque(text_batches(tokens, self._batch, self._encoder))
        return bool(self._text_batches)


def members_of(rows: pa.Table) -> tuple[pa.Table, NDArray[np.int64]]:
    """The pool members of some rows (COLUMNS), each once, as they lie in the pool; and for each row its member."""
    table = rows.select(COLUMNS).append_column("row", pa.array(np.arange(rows.num_rows)))
    table = table.sort_by([("pool_file", "ascending"), ("pool_offset", "ascending"), ("uid", "ascending")])
    files, offsets = (table[name].to_pylist() for name in ("pool_file", "pool_offset"))
    new = np.array([not place or (files[place], offsets[place]) != (files[place - 1], offsets[place - 1])
                    for place in range(len(files))], np.bool_)  # fmt: skip
    image_of = np.empty(rows.num_rows, np.int64)
    image_of[table["row"].to_numpy()] = np.cumsum(new) - 1
    return table.filter(pa.array(new)).select(COLUMNS), image_of


def text_batches(tokens: Tokens, batch: int, encoder: Encoder) -> list[tuple[NDArray[np.int64], Tokens]]:
    """(rows, their tokens) of captions [n, context] by length, the shortest first, each batch cut to its longest.

    Where the encoder reads its padding, batches are as wide as they came.
    """
    lengths = encoder.text_lengths(tokens)
    order = np.argsort(lengths, kind="stable")
    made = []
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        longest = -(-int(lengths[rows].max()) // TEXT_STEP) * TEXT_STEP
        width = longest if encoder.text_lengths_matter else tokens.shape[1]
        made.append((rows, np.ascontiguousarray(tokens[rows, :width])))
    return made


def _unique(captions: pa.ChunkedArray) -> tuple[pa.Array, NDArray[np.int64]]:
    coded = captions.combine_chunks().dictionary_encode()
    return coded.dictionary, coded.indices.to_numpy().astype(np.int64)


def out_of_memory(error: Exception) -> bool:
    """Whether a tower had too little memory for its batch."""
    torch: Any = sys.modules.get("torch")
    return isinstance(error, MemoryError) or (torch is not None and isinstance(error, torch.OutOfMemoryError))


def _give_back() -> None:
    """Return cached memory to the device: what was freed is in pieces of the wrong size."""
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        torch.cuda.empty_cache()


def _pin(ring: Ring) -> None:
    """Lock the ring's pages, so that copies to the device need no second copy here; it works without, slower."""
    import torch

    cuda: Any = torch.cuda
    cuda.cudart().cudaHostRegister(ring.address, ring.shape.size, 0)
