"""Towers of Hugging Face folders: CLIPModel and SiglipModel, built by transformers, weights put in by us."""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.encoders import checkpoint
from pipeline.encoders.source import Source
from pipeline.errors import InputError

_FILTERS = {2: "bilinear", 3: "bicubic"}
"""PIL's numbers, in preprocessor_config.json."""


class HuggingFaceTowers:
    """Both towers of a CLIPModel or SiglipModel; vectors are not normalised."""

    def __init__(self, model: nn.Module, clip: bool) -> None:
        self.model: Any = model
        self._clip = clip
        self.trims = clip  # causal, and pooled at the end; SigLIP sees its padding

    def images(self, pixels: Tensor) -> Tensor:
        pooled: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output
        return self.model.visual_projection(pooled) if self._clip else pooled

    def pooled(self, pixels: Tensor) -> Tensor:
        """Before the projection into the embedding space; SigLIP has none."""
        before: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output
        return before

    def texts(self, tokens: Tensor) -> Tensor:
        pooled: Tensor = self.model.text_model(input_ids=tokens).pooler_output
        return self.model.text_projection(pooled) if self._clip else pooled


def model_of(source: Source) -> tuple[HuggingFaceTowers, int, Any]:
    """The towers with their weights, the length of their vectors, and transformers' config."""
    import transformers

    transformers.logging.set_verbosity_error()
    assert source.config is not None
    assert source.folder is not None
    clip = source.config["model_type"] == "clip"
    config_of: Any = transformers.CLIPConfig if clip else transformers.SiglipConfig
    try:
        config = config_of.from_pretrained(source.folder, local_files_only=True)
        model = (transformers.CLIPModel if clip else transformers.SiglipModel)(config)
    except Exception as error:  # noqa: BLE001 - transformers' and huggingface_hub's own errors about a config
        first = str(error).strip().splitlines()[:1] or [""]
        raise InputError(
            f"{source.place}: {source.folder / 'config.json'} is not understood: {first[0][:200]}"
        ) from None
    read = checkpoint.read(source.weights, source.place)
    checkpoint.put(model, read.state, source.place, f"weights {source.weights[0]}")
    dim = config.projection_dim if clip else config.vision_config.hidden_size
    return HuggingFaceTowers(model, clip), dim, config


def preprocess_of(source: Source, image_size: int) -> dict[str, Any]:
    """open_clip's names for what preprocessor_config.json says. Raises InputError where it says what neither can do."""
    assert source.folder is not None
    said, path = source.preprocess, source.folder / "preprocessor_config.json"
    size, crop = _sides(said.get("size")), _sides(said.get("crop_size"))
    cropped = bool(said.get("do_center_crop", crop is not None))
    shortest = isinstance(said.get("size"), dict) and "shortest_edge" in said["size"]
    if shortest or (cropped and isinstance(said.get("size"), int)):  # a number, in configs of 2021
        if not cropped or crop is None or crop != size:
            raise _refused(source, path, "crop_size", said.get("crop_size"), f"the size {said.get('size')}")
        mode = "shortest"
    else:
        mode = "squash"
        if cropped and crop != size:
            raise _refused(source, path, "crop_size", said.get("crop_size"), f"the size {said.get('size')}")
    if size != (image_size, image_size):
        raise _refused(source, path, "size", said.get("size"), f"vision_config.image_size {image_size}")
    resample = said.get("resample", 3 if cropped else 2)
    if resample not in _FILTERS:
        raise _refused(source, path, "resample", resample, "2 (bilinear) or 3 (bicubic)")
    if abs(said.get("rescale_factor", 1 / 255) - 1 / 255) > 1e-9:
        raise _refused(source, path, "rescale_factor", said["rescale_factor"], "1/255")
    for key in ("image_mean", "image_std"):
        if len(said.get(key) or []) != 3:
            raise _refused(source, path, key, said.get(key), "three numbers")
    return {
        "size": size, "mean": said["image_mean"], "std": said["image_std"], "resize_mode": mode,
        "interpolation": _FILTERS[resample], "fill_color": 0,
    }  # fmt: skip


def _sides(value: Any) -> tuple[int, int] | None:
    """(height, width) of 224, {"shortest_edge": 224} or {"height": 224, "width": 224}."""
    if isinstance(value, int):
        return value, value
    if isinstance(value, dict) and "shortest_edge" in value:
        return value["shortest_edge"], value["shortest_edge"]
    if isinstance(value, dict) and {"height", "width"} <= set(value):
        return value["height"], value["width"]
    return None


def _refused(source: Source, path: Path, key: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{source.place}: {key} is {value} in {path}; it must be {wanted}")
