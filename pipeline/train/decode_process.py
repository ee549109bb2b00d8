"""A decode process of training: sample numbers in; pixels into the shared ring, token ids back.

Its memory is limited and each image has a time, so that an image that breaks a decoder ends this process and no other.
"""

import pickle
import resource
import signal
import time
from pathlib import Path
from typing import Final

import numpy as np

from pipeline.embed.child import frames_of_parent
from pipeline.embed.ring import DONE, FAILED, UNDER_WAY, Ring, Shape
from pipeline.frames import receive, send
from pipeline.images.errors import ImageError
from pipeline.start import start_lean
from pipeline.train.reading import Reader

MEMORY_BYTES: Final = 4 << 30
IMAGE_SECONDS: Final = 60
"""Wall time for one image; then SIGALRM ends the process, stuck inside a decoder as it may be."""


def main() -> None:
    start_lean()
    requests, replies = frames_of_parent()
    first, data = receive(requests)
    preprocess, tokenize, random_crop, seed = pickle.loads(data)  # our own parent's
    ring = Ring(Shape(**first["ring"]), first["fd"])
    pixels = ring.pixels.reshape(ring.shape.slots, ring.shape.height, ring.shape.width, 3)
    reader = Reader(Path(first["index"]), preprocess, tokenize, random_crop, seed)
    _limit_memory()
    send(replies, {})
    while True:
        try:
            task, _ = receive(requests)
        except EOFError:
            return
        start = time.process_time()
        failed: dict[str, list[str]] = {}
        try:
            images = reader.images(task["samples"])
        except OSError as error:  # the store's, not the image's: another try may well succeed
            send(replies, {"error": str(error)})
            continue
        tokens = []
        for slot, sample, position, image in zip(
            task["slots"], task["samples"], task["positions"], images, strict=True
        ):
            ring.status[slot] = UNDER_WAY
            signal.alarm(IMAGE_SECONDS)
            try:
                if isinstance(image, ImageError):
                    raise image
                pixels[slot] = reader.pixels(image, position)
                tokens.append(reader.tokens(sample))
                ring.status[slot] = DONE
            except ImageError as error:
                pixels[slot] = 0
                tokens.append(reader.no_tokens)
                failed[str(slot)] = [error.reason, error.detail]
                ring.status[slot] = FAILED
            signal.alarm(0)
        reply = {"failed": failed, "cpu": time.process_time() - start}
        send(replies, reply, np.stack(tokens).tobytes())


def _limit_memory() -> None:
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    most = now + MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


if __name__ == "__main__":
    main()
