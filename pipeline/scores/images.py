"""Images of pool rows through a head over pixels, decoded ahead by processes of their own."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, wait

import numpy as np
import pyarrow as pa

from pipeline.embed.decode_pool import DecodePool, Failures
from pipeline.embed.forward import members_of
from pipeline.embed.ring import Ring, Shape
from pipeline.heads.head import Floats
from pipeline.heads.pixels import PixelModel

BATCH = 64
"""Images a forward: enough for a GPU, and little memory on a CPU."""
BUFFERS = 3


class ImageScores:
    """One model and its decode processes; one thread at a time. Close it.

    Memory beside the model: the ring, BUFFERS batches of pixels (38 MB at 256 x 256), and what the processes decode.
    """

    def __init__(self, root: str, model: PixelModel, scaled: bool, decoders: int) -> None:
        self._model = model
        self._ring = Ring(Shape(BUFFERS, BATCH, *model.preprocess.size))
        self._pool = DecodePool(root, model.preprocess, scaled, self._ring, decoders)

    def close(self) -> None:
        self._pool.close()
        self._ring.close()

    def run(self, rows: pa.Table, batch_done: Callable[[], None] = lambda: None) -> Floats:
        """Scores [rows, outputs] of rows with decode_pool.COLUMNS; NaN where an image cannot be decoded. Rows that
        share a pool member share its scores. Raises PoolMismatchError where the pool is not as it was recorded."""
        members, image_of = members_of(rows)
        made = np.full((members.num_rows, self._model.outputs), np.nan, np.float32)
        starts = deque(range(0, members.num_rows, BATCH))
        under_way: deque[tuple[int, int, int, Future[Failures]]] = deque()
        free = deque(range(BUFFERS))
        try:
            while starts or under_way:
                while starts and free:
                    start, buffer = starts.popleft(), free.popleft()
                    batch = members.slice(start, BATCH)
                    under_way.append((start, batch.num_rows, buffer, self._pool.decode(buffer, batch)))
                start, count, buffer, ready = under_way[0]
                failed = ready.result()
                made[start : start + count] = self._model(self._ring.pixels[buffer, :count])
                for place in failed:
                    made[start + place] = np.nan
                under_way.popleft()
                free.append(buffer)
                batch_done()
        finally:
            wait([ready for _, _, _, ready in under_way])  # nobody writes into the ring once it is used again
        return made[image_of]
