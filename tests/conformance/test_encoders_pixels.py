"""An encoder's input is open_clip's own, bit for bit, from the same bytes."""

import io

import numpy as np
import open_clip
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from pipeline.embed.decode import decode_image
from pipeline.encoders.preprocess import Preprocess, to_pixels

sides = st.integers(24, 400)


def photo(name: str) -> Image.Image:
    """A real photograph."""
    import skimage.data

    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def theirs(image: Image.Image, preprocess: Preprocess) -> np.ndarray:
    """open_clip's preprocess_val without its normalisation, as levels [rows, columns, 3]."""
    transform = image_transform_v2(
        PreprocessCfg(
            preprocess.size, "RGB", (0.0,) * 3, (1.0,) * 3, preprocess.interpolation, preprocess.resize_mode,
            preprocess.fill,
        ),
        is_train=False,
    )  # fmt: skip
    return (transform(image).permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "squash", "longest"])
@settings(max_examples=25, deadline=None)
@given(height=sides, width=sides, rows=st.integers(16, 96), columns=st.integers(16, 96), square=st.booleans())
def test_every_mode_size_and_filter_is_open_clips(
    mode: str, interpolation: str, height: int, width: int, rows: int, columns: int, square: bool
) -> None:
    size = (rows, rows if square else columns)
    preprocess = Preprocess(size, (0.5,) * 3, (0.5,) * 3, interpolation, mode, 7)  # type: ignore[arg-type]
    pixels = np.random.default_rng(height * width).integers(0, 256, (height, width, 3), np.uint8)
    assert np.array_equal(to_pixels(pixels, preprocess), theirs(Image.fromarray(pixels), preprocess))


@pytest.mark.parametrize("name", ["astronaut", "coffee", "chelsea", "rocket"])
@pytest.mark.parametrize(("kind", "options"), [
    ("JPEG", {"quality": 95}), ("JPEG", {"quality": 60, "subsampling": 2, "progressive": True}), ("PNG", {}),
    ("WEBP", {"quality": 80}),
])  # fmt: skip
def test_pool_bytes_become_what_open_clip_makes_of_the_file(name: str, kind: str, options: dict[str, object]) -> None:
    out = io.BytesIO()
    image = photo(name)
    image.thumbnail((340, 340))
    image.save(out, kind, **options)
    for preprocess in (
        Preprocess((224, 224), (0.5,) * 3, (0.5,) * 3),
        Preprocess((256, 256), (0.5,) * 3, (0.5,) * 3, "bicubic", "squash"),
    ):
        ours = decode_image(out.getvalue(), preprocess, scaled=False)
        assert np.array_equal(ours, theirs(Image.open(out), preprocess))


def test_normalised_on_the_device_is_normalised_by_torchvision() -> None:
    import torch

    from pipeline.encoders.load import load
    from schemas.recipe import Encoder

    encoder = load(Encoder(name="e", arch="pairmill-tiny", weights="untrained"))
    seen = []
    encoder._towers.images = lambda pixels: seen.append(pixels) or pixels  # type: ignore[method-assign, func-returns-value]
    image = photo("chelsea")
    encoder.encode_images(to_pixels(np.asarray(image), encoder.preprocess).transpose(2, 0, 1)[None])
    expected = open_clip.image_transform(112, is_train=False)(image)
    assert torch.allclose(seen[0][0], expected, atol=1e-6)
