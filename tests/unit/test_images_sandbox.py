"""A decoder that dies, hangs or swallows memory costs its own image and nothing else."""

import hashlib
import io
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from pipeline.images.process import POISON, ImageError, ImageProcessor
from pipeline.images.sandbox import SandboxedProcessor
from schemas.recipe import Download


def png(side: int, colour: str = "teal") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (side, side), colour).save(out, "PNG", compress_level=1)
    return out.getvalue()


SMALL = png(64)
LARGE = png(6000)


@pytest.fixture
def sandbox() -> Iterator[SandboxedProcessor]:
    with SandboxedProcessor(Download()) as processor:
        yield processor


def failure(processor: SandboxedProcessor, data: bytes, boxes: object = None) -> ImageError:
    with pytest.raises(ImageError) as caught:
        processor(data, boxes)
    return caught.value


def test_a_child_gives_what_the_process_itself_gives(sandbox: SandboxedProcessor) -> None:
    noise = Image.fromarray(np.random.default_rng(7).integers(0, 255, (300, 200, 3), np.uint8))
    out = io.BytesIO()
    noise.save(out, "JPEG")
    boxes = [[0.1, 0.1, 0.5, 0.5]]
    assert sandbox(out.getvalue(), boxes) == ImageProcessor(Download())(out.getvalue(), boxes)


def test_refusals_come_through_with_their_reason(sandbox: SandboxedProcessor) -> None:
    assert failure(sandbox, b"<html>").reason == "not_an_image"
    assert failure(sandbox, SMALL[:-30]).reason == "decode_error"
    assert failure(sandbox, SMALL, "not boxes").reason == "bad_row"


def test_one_child_serves_image_after_image(sandbox: SandboxedProcessor) -> None:
    sandbox(SMALL)
    first = sandbox._child
    failure(sandbox, b"")
    sandbox(SMALL)
    assert sandbox._child is first


def test_a_poison_image_kills_its_child_only(sandbox: SandboxedProcessor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(POISON, hashlib.sha256(LARGE).hexdigest())
    assert sandbox(SMALL).width == 256
    crash = failure(sandbox, LARGE)
    assert (crash.reason, crash.detail) == ("decoder_crash", "signal 9 (SIGKILL)")
    assert sandbox(SMALL).width == 256


def test_a_child_killed_between_images_is_a_crash_of_one_row_at_most(sandbox: SandboxedProcessor) -> None:
    sandbox(SMALL)
    assert sandbox._child is not None
    os.kill(sandbox._child.pid, signal.SIGSEGV)
    assert failure(sandbox, SMALL).detail == "signal 11 (SIGSEGV)"
    assert sandbox(SMALL).width == 256


def test_an_image_beyond_the_memory_limit_is_a_crash() -> None:
    with SandboxedProcessor(Download(), memory_bytes=64 << 20) as sandbox:
        assert failure(sandbox, LARGE).reason == "decoder_crash"
        assert sandbox(SMALL).width == 256


def test_an_image_that_takes_too_long_is_a_crash() -> None:
    with SandboxedProcessor(Download(), seconds=0.25) as sandbox:
        sandbox(SMALL)
        assert sandbox._child is not None
        os.kill(sandbox._child.pid, signal.SIGSTOP)
        crash = failure(sandbox, SMALL)
        assert (crash.reason, crash.detail) == ("decoder_crash", "no answer in 0.25 s")
        assert sandbox(SMALL).width == 256


def test_close_ends_the_child(sandbox: SandboxedProcessor) -> None:
    sandbox(SMALL)
    child = sandbox._child
    assert child is not None
    sandbox.close()
    assert child.poll() == 0
