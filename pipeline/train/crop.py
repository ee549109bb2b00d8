"""Bytes to a training image: the resized image's square, cut out at random or in the middle."""

import numpy as np
from PIL import Image

from pipeline.embed.decode import Pixels, decode_rgb, judged
from pipeline.encoders.preprocess import Preprocess, resized, to_pixels


def training_pixels(data: bytes, preprocess: Preprocess, place: float | None) -> Pixels:
    """uint8 RGB [rows, columns, 3]. Raises ImageError.

    The paper's only augmentation (Radford et al. 2021, section 2.4): the image resized so that it covers the input, and
    a random square of it: `place`, 0 … 1, is where along the longer side it is cut. None: the encoder's own crop.
    """
    with judged():
        rgb = decode_rgb(data, preprocess, scaled=True)
        if place is None or preprocess.resize_mode != "shortest":
            return to_pixels(rgb, preprocess)
        rows, columns = preprocess.size
        height, width = resized(rgb.shape[0], rgb.shape[1], preprocess)
        if (height, width) != rgb.shape[:2]:
            method = Image.Resampling.BILINEAR if preprocess.interpolation == "bilinear" else Image.Resampling.BICUBIC
            rgb = np.asarray(Image.fromarray(rgb).resize((width, height), method))
        top, left = int(place * (height - rows + 1)), int(place * (width - columns + 1))
        return rgb[top : top + rows, left : left + columns]
