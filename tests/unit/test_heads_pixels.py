"""Models over pixels: LAION's watermark detector, rebuilt as published with random weights, gives the same scores."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import transforms

from jobs.heads import main
from pipeline.encoders.preprocess import to_pixels
from pipeline.errors import InputError
from pipeline.heads.convert import convert_watermark
from pipeline.heads.head import Head, read_spec, read_tensors
from pipeline.heads.pixels import PixelModel

torch.set_num_threads(2)


@pytest.fixture(scope="module")
def published() -> Any:
    """example_use.py's model."""
    import timm

    torch.manual_seed(5)
    model = timm.create_model("efficientnet_b3", num_classes=2)
    model.classifier = nn.Sequential(
        nn.Linear(1536, 625), nn.ReLU(), nn.Dropout(p=0.3), nn.Linear(625, 256), nn.ReLU(), nn.Linear(256, 2)
    )
    with torch.no_grad():
        for linear in (model.classifier[0], model.classifier[3], model.classifier[5]):
            linear.weight *= 8  # else every image scores about 0.5
    return model.eval()


@pytest.fixture(scope="module")
def photos() -> list[Image.Image]:
    draw = np.random.default_rng(2)
    sizes = [(300, 200), (256, 256), (90, 400), (64, 64)]
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), np.uint8)).resize(size) for size in sizes]


def reopened(path: Path) -> Head:
    data = path.with_suffix(".safetensors").read_bytes()
    return read_tensors(read_spec(path.read_bytes(), path.name), data, path.name)


def test_the_converted_watermark_detector_scores_as_the_published_one(
    published: Any, photos: list[Image.Image], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(published.state_dict(), tmp_path / "watermark_model_v1.pt")
    out = tmp_path / "pwatermark.json"
    assert main(["laion-watermark", str(tmp_path / "watermark_model_v1.pt"), "--out", str(out)]) == 0
    assert "column pwatermark" in capsys.readouterr().out
    preprocess = transforms.Compose([
        transforms.Resize((256, 256)), transforms.ToTensor(),
        transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ])  # fmt: skip
    with torch.no_grad():
        batch = torch.stack([preprocess(photo) for photo in photos])
        expected = nn.functional.softmax(published(batch), dim=1)[:, 0].numpy()
    model = PixelModel(reopened(out), "pwatermark")
    pixels = np.stack([to_pixels(np.asarray(photo), model.preprocess) for photo in photos])
    np.testing.assert_allclose(model(pixels)[:, 0], expected, rtol=1e-4, atol=1e-5)


def test_a_file_that_is_not_it_is_refused_with_the_tensor_that_differs(published: Any, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    for edit, said in (
        (lambda state: state.pop("classifier.3.bias"), "tensor classifier.3.bias is missing"),
        (lambda state: state.update({"classifier.5.weight": torch.zeros(3, 256)}), r"is \[3, 256\], not \[2, 256\]"),
        (lambda state: state.update({"classifier.6.weight": torch.zeros(1)}), "it also has classifier.6.weight"),
        (lambda state: state.pop("conv_stem.weight"), "tensor backbone.conv_stem.weight is missing"),
    ):
        state = dict(published.state_dict())
        edit(state)
        torch.save(state, path)
        with pytest.raises(InputError, match=said):
            convert_watermark(str(path))
