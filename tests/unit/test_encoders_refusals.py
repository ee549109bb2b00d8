"""Weights that are not what the recipe says are refused in one line that names the difference; code is never run."""

import copy
import hashlib
import json
import os
import pickle
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from pipeline.encoders.identity import identify
from pipeline.encoders.load import load
from pipeline.errors import InputError
from schemas.recipe import Encoder
from tests import encoder_formats as formats


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An open_clip folder."""
    return formats.open_clip_folder(tmp_path_factory.mktemp("vit"), formats.VIT, formats.model(formats.VIT))


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder."""
    return formats.hugging_face_clip(tmp_path_factory.mktemp("clip"), formats.VIT, formats.model(formats.VIT))


@pytest.fixture
def folder(vit: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(vit, tmp_path / "vit"))


@pytest.fixture
def clip_folder(clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip, tmp_path / "clip"))


def refusal(weights: Path | str, arch: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        load(Encoder(name="e", arch=arch, weights=str(weights)))
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith("encoder e: ")
    return line


def changed(path: Path, **keys: Any) -> None:
    """Change keys of a JSON file; `None` removes one."""
    value = {**json.loads(path.read_text()), **keys}
    formats.write_json(path, {key: one for key, one in value.items() if one is not None})


def rewritten(folder: Path, change: Any) -> None:
    state = formats.plain_state(formats.model(formats.VIT))
    change(state)
    save_file(state, folder / "open_clip_model.safetensors")


class _Code:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, zipped: bool) -> None:
    state = {"visual.proj": torch.zeros(2), "state_dict": _Code(tmp_path / "run")}
    torch.save(state, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    line = refusal(tmp_path / "w.pt", "pairmill-tiny")
    assert "posix.mkdir" in line
    assert not (tmp_path / "run").exists()


def test_a_torchscript_archive_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    config = {**formats.VIT, "quick_gelu": True}
    good = formats.openai_archive(tmp_path / "good.pt", config, formats.model(config))
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(tmp_path / "bad.pt", "w") as new:
        for name in old.namelist():
            new.writestr(name, pickle.dumps(_Code(tmp_path / "run")) if name.endswith("/data.pkl") else old.read(name))
    assert "posix.mkdir" in refusal(tmp_path / "bad.pt")
    assert not (tmp_path / "run").exists()


def test_a_key_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    rewritten(folder, lambda state: state.update({"ln_final.weight": torch.zeros(65)}))
    assert "ln_final.weight is 65 in" in (line := refusal(folder))
    assert "64 in the architecture" in line


def test_a_key_that_is_lacking_is_named(folder: Path) -> None:
    rewritten(folder, lambda state: state.pop("visual.ln_post.bias"))
    assert "lack visual.ln_post.bias 128 of the architecture" in refusal(folder)


def test_a_key_too_many_is_named(folder: Path) -> None:
    rewritten(folder, lambda state: state.update({"visual.head.weight": torch.zeros(3, 4)}))
    assert "visual.head.weight 3×4 of" in refusal(folder)


def test_positions_are_not_stretched_to_another_image_size(folder: Path) -> None:
    config = copy.deepcopy(formats.VIT)
    config["vision_cfg"]["image_size"] = 96
    formats.write_json(folder / "open_clip_config.json", {"model_cfg": config})
    assert "visual.positional_embedding is 17×128" in refusal(folder)


def test_a_size_of_preprocessing_that_is_not_the_towers(folder: Path) -> None:
    changed(folder / "open_clip_config.json", preprocess_cfg={**formats.PREPROCESS, "size": [96, 96]})
    assert "preprocess_cfg.size is [96, 96], and its image tower takes (64, 64)" in refusal(folder)


def test_an_architecture_that_is_not_the_folders_is_refused_with_the_setting(folder: Path) -> None:
    line = refusal(folder, "ViT-B-32")
    assert "embed_dim is 48" in line
    assert "512 in arch ViT-B-32" in line


def test_an_openai_archive_is_refused_where_arch_has_the_other_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipeline.encoders import source

    config = {**formats.VIT, "quick_gelu": True}
    path = formats.openai_archive(tmp_path / "clip.pt", config, formats.model(config))
    formats.write_json(tmp_path / "little.json", formats.VIT)
    formats.write_json(tmp_path / "little-quickgelu.json", config)
    known = {name: tmp_path / f"{name}.json" for name in ("little", "little-quickgelu")}
    monkeypatch.setattr(source, "_configs", lambda: known)
    line = refusal(path, "little")
    assert "quick_gelu is True" in line
    assert "give arch: little-quickgelu" in line
    assert load(Encoder(name="e", weights=str(path))).arch == "little-quickgelu"
    assert load(Encoder(name="e", arch="little-quickgelu", weights=str(path))).dim == 48


def test_a_bare_state_dict_does_not_say_its_activation(tmp_path: Path) -> None:
    from pipeline.encoders.source import OWN_CONFIGS

    config = json.loads((OWN_CONFIGS / "pairmill-tiny.json").read_text())
    torch.save(formats.plain_state(formats.model(config)), tmp_path / "w.pt")
    assert "give arch: pairmill-tiny" in refusal(tmp_path / "w.pt")


def test_a_tag_of_the_registry_is_refused_where_its_activation_is_the_other() -> None:
    line = refusal("openai", "ViT-B-32")
    assert "QuickGELU" in line
    assert "ViT-B-32-quickgelu" in line


def test_a_file_whose_digest_the_registry_knows_is_refused_with_the_other_activation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip.pretrained as registry

    from pipeline.encoders.source import OWN_CONFIGS

    config = json.loads((OWN_CONFIGS / "pairmill-tiny.json").read_text())
    torch.save(formats.plain_state(formats.model(config)), tmp_path / "w.pt")
    start = hashlib.sha256((tmp_path / "w.pt").read_bytes()).hexdigest()[:8]
    url = f"https://github.com/mlfoundations/open_clip/releases/download/v0/tiny-{start}.pt"
    said = {"url": url, "mean": (0.1, 0.2, 0.3), "std": (1, 1, 1)}
    monkeypatch.setitem(registry._PRETRAINED, "some", {"release": {**said, "quick_gelu": True}})
    assert "were trained with QuickGELU" in refusal(tmp_path / "w.pt", "pairmill-tiny")
    monkeypatch.setitem(registry._PRETRAINED, "some", {"release": said})
    encoder = load(Encoder(name="e", arch="pairmill-tiny", weights=str(tmp_path / "w.pt")))
    assert encoder.preprocess.mean == (0.1, 0.2, 0.3)


def test_a_tag_whose_weights_are_in_the_hubs_cache_is_those_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    cached = tmp_path / "models--laion--CLIP-ViT-B-32-laion2B-s34B-b79K"
    (cached / "snapshots" / "abc").mkdir(parents=True)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("abc")
    (cached / "snapshots" / "abc" / "open_clip_pytorch_model.bin").write_bytes(b"weights")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    identity = identify(Encoder(name="e", arch="ViT-B-32", weights="laion2b_s34b_b79k"))
    assert identity.weights_sha256 == hashlib.sha256(b"weights").hexdigest()


def test_a_tag_that_is_not_cached_fails_with_one_line_where_there_is_no_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    line = refusal("laion2b_s34b_b79k", "ViT-B-32")
    assert "not in the cache" in line
    assert "give their path" in line


def test_a_tag_nobody_knows_names_the_nearest() -> None:
    assert "did you mean laion2b_s34b_b79k?" in refusal("laion2b_s34b_b79", "ViT-B-32")


def test_an_architecture_nobody_knows_names_the_nearest() -> None:
    assert "did you mean ViT-B-32?" in refusal("untrained", "VIT-B32")


def test_untrained_weights_need_an_architecture() -> None:
    assert "need arch" in refusal("untrained")


def test_weights_that_are_nowhere(tmp_path: Path) -> None:
    assert "is no file and no folder" in refusal(tmp_path / "none.pt", "ViT-B-32")


@pytest.mark.parametrize("name", ["w.pt", "w.safetensors"])
def test_broken_files(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x00\x01 not weights")
    line = refusal(tmp_path / name, "pairmill-tiny")
    assert name in line


def test_a_truncated_checkpoint(tmp_path: Path) -> None:
    torch.save(formats.plain_state(formats.model(formats.VIT)), tmp_path / "w.pt")
    whole = (tmp_path / "w.pt").read_bytes()
    (tmp_path / "w.pt").write_bytes(whole[: len(whole) // 2])
    assert "w.pt" in refusal(tmp_path / "w.pt", "pairmill-tiny")


@pytest.mark.parametrize(
    ("file", "keys", "said"),
    [
        ("config.json", {"model_type": "siglip2"}, "model_type 'siglip2'"),
        ("preprocessor_config.json", {"size": {"shortest_edge": 96}}, "crop_size is"),
        ("preprocessor_config.json", {"resample": 0}, "resample is 0"),
        ("preprocessor_config.json", {"rescale_factor": 1.0}, "rescale_factor is 1.0"),
        ("preprocessor_config.json", {"image_std": None}, "image_std is None"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side 'left'"),
    ],
)
def test_a_hugging_face_folder_that_says_what_we_cannot_do(
    clip_folder: Path, file: str, keys: dict[str, Any], said: str
) -> None:
    changed(clip_folder / file, **keys)
    assert said in refusal(clip_folder)


def test_sizes_as_hugging_face_wrote_them_in_2021_are_read(clip_folder: Path) -> None:
    before = load(Encoder(name="e", weights=str(clip_folder))).preprocess
    changed(clip_folder / "preprocessor_config.json", size=64, crop_size=64)
    assert load(Encoder(name="e", weights=str(clip_folder))).preprocess == before
    assert (before.size, before.resize_mode) == ((64, 64), "shortest")


def test_a_hugging_face_folder_whose_config_is_not_its_weights(clip_folder: Path) -> None:
    config = json.loads((clip_folder / "config.json").read_text())
    config["vision_config"]["num_hidden_layers"] = 1
    formats.write_json(clip_folder / "config.json", config)
    assert "vision_model.encoder.layers.1" in refusal(clip_folder)


@pytest.mark.parametrize("file", ["preprocessor_config.json", "tokenizer.json", "model.safetensors"])
def test_a_file_that_is_missing_is_named_before_anything_is_loaded(clip_folder: Path, file: str) -> None:
    (clip_folder / file).unlink()
    with pytest.raises(InputError, match=file):
        identify(Encoder(name="e", weights=str(clip_folder)))


def test_a_tokenizer_of_more_words_than_the_tower_knows(folder: Path) -> None:
    config = copy.deepcopy(formats.VIT)
    config["text_cfg"]["vocab_size"] = 1000
    formats.open_clip_folder(folder, config, formats.model(config))
    assert "ids go to 49407, the text tower's vocabulary is 1000" in refusal(folder)


def test_a_tokenizer_of_the_hub_that_is_not_at_hand_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    line = refusal("untrained", "ViT-B-16-SigLIP")
    assert "tokenizer.json of timm/ViT-B-16-SigLIP" in line
