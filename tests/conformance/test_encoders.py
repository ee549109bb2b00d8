"""Encoders give what open_clip and transformers give for the same weights, in every format."""

import copy
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from pipeline.encoders.encoder import LoadedEncoder
from pipeline.encoders.identity import identify
from pipeline.encoders.load import load
from pipeline.encoders.preprocess import to_pixels
from schemas.recipe import Encoder
from tests import encoder_formats as formats

TEXTS = ["a photo of a cat", "Two children &amp; a sandcastle, at low tide.", "naïve café 日本 🎉", "", "x " * 200]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def images() -> list[Image.Image]:
    draw = np.random.default_rng(5)
    small = [draw.integers(0, 256, (rows, columns, 3), np.uint8) for rows, columns in ((9, 12), (12, 8), (6, 6))]
    return [Image.fromarray(one).resize((one.shape[1] * 9, one.shape[0] * 9)) for one in small]


def encoded(encoder: LoadedEncoder) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.stack([to_pixels(np.asarray(image), encoder.preprocess) for image in images()])
    return encoder.encode_images(pixels.transpose(0, 3, 1, 2)), encoder.encode_texts(encoder.tokenize(TEXTS))


def by_open_clip(model: Any, preprocess: Any, tokenize: Any) -> tuple[np.ndarray, np.ndarray]:
    with torch.inference_mode():
        pixels = torch.stack([preprocess(image) for image in images()])
        return (
            model.encode_image(pixels, normalize=False).numpy(),
            model.encode_text(tokenize(TEXTS), normalize=False).numpy(),
        )


def assert_same(
    one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray], least: float = 0.99999
) -> None:
    for mine, theirs in zip(one, other, strict=True):
        assert mine.shape == theirs.shape
        assert mine.dtype == np.float32
        lengths = np.linalg.norm(mine, axis=1) * np.linalg.norm(theirs, axis=1)
        cosines = (mine * theirs).sum(axis=1) / lengths
        assert cosines.min() >= least
        assert np.linalg.norm(mine, axis=1) == pytest.approx(
            np.linalg.norm(theirs, axis=1), rel=1e-3 if least > 0.999 else 0.05
        )
        assert np.unique(np.round(mine, 3), axis=0).shape[0] > 1, "all vectors are one: this proves nothing"


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("VIT", ".safetensors"), ("VIT", ".bin"), ("RESNET", ".bin"), ("MOBILE", ".bin"), ("COCA", ".safetensors")],
)
def test_a_local_dir_of_any_architecture_gives_open_clips_vectors(tmp_path: Path, name: str, suffix: str) -> None:
    config = getattr(formats, name)
    folder = formats.open_clip_folder(tmp_path / "m", config, formats.model(config), suffix)
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    theirs = by_open_clip(model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"))
    assert_same(encoded(load(Encoder(name="e", weights=str(folder)))), theirs)


def test_a_siglip_folder_gives_open_clips_vectors(tmp_path: Path) -> None:
    folder = formats.open_clip_folder(tmp_path / "m", formats.SIGLIP, formats.model(formats.SIGLIP))
    formats.sentence_pieces(folder)
    formats.write_json(folder / "tokenizer_config.json", {
        "tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>",
    })  # fmt: skip
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    theirs = by_open_clip(model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}"))
    encoder = load(Encoder(name="e", weights=f"local-dir:{folder}"))
    assert_same(encoded(encoder), theirs)
    assert not encoder.text_lengths_matter  # its text tower sees the padding


def test_a_training_checkpoint_gives_the_vectors_of_its_state_dict(tmp_path: Path) -> None:
    made = formats.model(formats.VIT)
    folder = formats.open_clip_folder(tmp_path / "m", formats.VIT, made)
    plain = encoded(load(Encoder(name="e", weights=str(folder))))
    state = {f"module.{name}": tensor for name, tensor in formats.plain_state(made).items()}
    optimizer = torch.optim.AdamW(made.parameters()).state_dict()
    torch.save({"epoch": 3, "name": "run", "state_dict": state, "optimizer": optimizer}, folder / "epoch_3.pt")
    assert_same(encoded(load(Encoder(name="e", weights=str(folder / "epoch_3.pt")))), plain, 1.0 - 1e-6)


def test_a_checkpoint_of_a_named_architecture_gives_open_clips_vectors(tmp_path: Path) -> None:
    import json

    from pipeline.encoders.source import OWN_CONFIGS

    config = json.loads((OWN_CONFIGS / "pairmill-tiny.json").read_text())
    made = formats.model(config)
    torch.save(formats.plain_state(made), tmp_path / "w.pt")
    theirs = by_open_clip(
        made, open_clip.image_transform(112, is_train=False), open_clip.SimpleTokenizer(context_length=32)
    )
    assert_same(encoded(load(Encoder(name="e", arch="pairmill-tiny", weights=str(tmp_path / "w.pt")))), theirs)


@pytest.mark.parametrize("name", ["VIT", "RESNET"])
def test_an_openai_archive_gives_open_clips_vectors_without_torchscript(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**getattr(formats, name), "quick_gelu": True}
    path = formats.openai_archive(tmp_path / "clip.pt", config, formats.model(config))
    model = open_clip.load_openai_model(str(path), precision="fp32", device="cpu")
    theirs = by_open_clip(model, open_clip.image_transform(64, is_train=False), open_clip.get_tokenizer("ViT-B-32"))
    monkeypatch.setattr(torch.jit, "load", None)
    assert_same(encoded(load(Encoder(name="e", weights=str(path)))), theirs)


@pytest.mark.parametrize("quick_gelu", [True, False])
def test_a_clip_folder_of_hugging_face_gives_the_vectors_of_transformers_and_open_clip(
    tmp_path: Path, quick_gelu: bool
) -> None:
    from transformers import AutoTokenizer, CLIPModel

    config = {**formats.VIT, "quick_gelu": quick_gelu}
    made = formats.model(config)
    folder = formats.hugging_face_clip(tmp_path / "hf", config, made)
    encoder = load(Encoder(name="e", weights=str(folder)))
    ours = encoded(encoder)

    transform = open_clip.image_transform(64, is_train=False, mean=encoder.preprocess.mean, std=encoder.preprocess.std)
    pixels = torch.stack([transform(image) for image in images()])
    peer = CLIPModel.from_pretrained(folder).eval()
    tokens = AutoTokenizer.from_pretrained(folder)(
        TEXTS, padding="max_length", truncation=True, max_length=77, return_tensors="pt"
    )
    with torch.inference_mode():
        theirs = peer(pixel_values=pixels, **tokens)
    for mine, their in zip(ours, (theirs.image_embeds, theirs.text_embeds), strict=True):
        unit = mine / np.linalg.norm(mine, axis=1, keepdims=True)
        assert (unit * their.numpy()).sum(axis=1).min() >= 0.99999

    by_other = by_open_clip(made, transform, lambda texts: torch.from_numpy(encoder.tokenize(texts)))
    assert_same(ours, by_other)


def test_a_siglip_folder_of_hugging_face_gives_the_vectors_of_transformers(tmp_path: Path) -> None:
    from transformers import SiglipModel

    folder = formats.hugging_face_siglip(tmp_path / "hf")
    encoder = load(Encoder(name="e", weights=str(folder)))
    transform = open_clip.image_transform(
        64, is_train=False, mean=(0.5,) * 3, std=(0.5,) * 3, resize_mode="squash", interpolation="bicubic"
    )
    pixels = torch.stack([transform(image) for image in images()])
    with torch.inference_mode():
        peer = SiglipModel.from_pretrained(folder).eval()
        theirs = peer(pixel_values=pixels, input_ids=torch.from_numpy(encoder.tokenize(TEXTS)))
    for mine, their in zip(encoded(encoder), (theirs.image_embeds, theirs.text_embeds), strict=True):
        unit = mine / np.linalg.norm(mine, axis=1, keepdims=True)
        assert (unit * their.numpy()).sum(axis=1).min() >= 0.99999


def test_googles_siglip_file_gives_the_vectors_of_the_same_weights(tmp_path: Path) -> None:
    made = formats.model(formats.SIGLIP)
    folder = formats.open_clip_folder(tmp_path / "m", formats.SIGLIP, made)
    formats.sentence_pieces(folder)
    formats.write_json(folder / "tokenizer_config.json", {"eos_token": "</s>", "pad_token": "</s>"})
    plain = encoded(load(Encoder(name="e", weights=str(folder))))
    path = formats.big_vision(folder / "siglip.npz", formats.SIGLIP, made)
    assert_same(encoded(load(Encoder(name="e", weights=str(path)))), plain, 1.0 - 1e-6)


def test_shards_of_a_folder_are_read_as_one(tmp_path: Path) -> None:
    from transformers import CLIPModel

    whole = formats.hugging_face_clip(tmp_path / "hf", formats.VIT, formats.model(formats.VIT))
    parts = Path(shutil.copytree(whole, tmp_path / "parts"))
    (parts / "model.safetensors").unlink()
    CLIPModel.from_pretrained(whole).save_pretrained(parts, max_shard_size="4MB")
    assert len(list(parts.glob("model-*.safetensors"))) > 1
    both = [encoded(load(Encoder(name="e", weights=str(folder)))) for folder in (whole, parts)]
    assert_same(both[0], both[1], 1.0 - 1e-6)


@pytest.mark.parametrize("format", ["open_clip", "hugging_face"])
def test_cutting_the_padding_behind_the_longest_text_is_exact(tmp_path: Path, format: str) -> None:
    made = formats.model(formats.VIT)
    write = formats.open_clip_folder if format == "open_clip" else formats.hugging_face_clip
    encoder = load(Encoder(name="e", weights=str(write(tmp_path / "m", formats.VIT, made))))
    assert encoder.text_lengths_matter
    tokens = encoder.tokenize(TEXTS[:4])
    longest = int(encoder.text_lengths(tokens).max())
    assert longest < encoder.context
    whole, cut = encoder.encode_texts(tokens), encoder.encode_texts(tokens[:, :longest])
    assert np.abs(whole - cut).max() <= 1e-5 * np.abs(whole).max()


@pytest.mark.parametrize(("dtype", "least"), [("bf16", 0.999), ("fp16", 0.9999)])
@pytest.mark.parametrize("name", ["VIT", "RESNET", "MOBILE"])
def test_lower_precision_stays_near(tmp_path: Path, name: str, dtype: Any, least: float) -> None:
    config = getattr(formats, name)
    folder = formats.open_clip_folder(tmp_path / "m", config, formats.model(config))
    exact = encoded(load(Encoder(name="e", weights=str(folder))))
    assert_same(encoded(load(Encoder(name="e", weights=str(folder), dtype=dtype))), exact, least)


def test_a_bare_file_is_preprocessed_as_all_tags_of_its_architecture_say() -> None:
    mobile = load(Encoder(name="e", arch="MobileCLIP-S1", weights="untrained"))
    assert (mobile.preprocess.size, mobile.preprocess.mean, mobile.preprocess.std) == (
        (256, 256),
        (0.0,) * 3,
        (1.0,) * 3,
    )
    assert (mobile.preprocess.interpolation, mobile.preprocess.resize_mode) == ("bilinear", "shortest")
    assert mobile.encode_images(np.zeros((1, 3, 256, 256), np.uint8)).shape == (1, mobile.dim)


def test_untrained_weights_are_the_same_in_every_process_and_leave_the_generator_alone() -> None:
    settings = Encoder(name="e", arch="pairmill-tiny", weights="untrained")
    torch.manual_seed(7)
    first = load(settings)
    drawn = torch.rand(4)
    torch.manual_seed(7)
    assert torch.equal(torch.rand(4), drawn)
    second = load(settings)
    for mine, theirs in zip(encoded(first), encoded(second), strict=True):
        assert np.array_equal(mine, theirs)
    assert first.weights_sha256 == identify(settings).weights_sha256


def test_the_encoder_is_its_bytes_not_its_path(tmp_path: Path) -> None:
    made = formats.model(formats.VIT)
    here = formats.open_clip_folder(tmp_path / "here", formats.VIT, made)
    there = Path(shutil.copytree(here, tmp_path / "there"))
    one, other = (identify(Encoder(name="e", weights=str(folder))) for folder in (here, there))
    assert one == other
    config = copy.deepcopy(formats.VIT)
    config["quick_gelu"] = True
    formats.open_clip_folder(there, config, made)
    assert identify(Encoder(name="e", weights=str(there))).digest != one.digest
    assert identify(Encoder(name="e", weights=str(there))).weights_sha256 == one.weights_sha256
    assert load(Encoder(name="e", weights=str(here))).weights_sha256 == one.weights_sha256
