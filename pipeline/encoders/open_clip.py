"""Towers that open_clip builds: any of its architectures, from its registry, a folder's config or an archive."""

from copy import deepcopy
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from pipeline.encoders import checkpoint
from pipeline.encoders.checkpoint import State
from pipeline.encoders.identity import file_sha256
from pipeline.encoders.source import Source, architectures, check_activation, published, registered
from pipeline.errors import InputError
from schemas.recipe import Encoder


class OpenClipTowers:
    """Both towers of an open_clip model; vectors are not normalised."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._text: Any = model.text if hasattr(model, "text") else model
        pool = getattr(self._text, "text_pool_type", getattr(self._text, "pool_type", None))
        causal = isinstance(getattr(self._text, "attn_mask", None), Tensor)
        native = hasattr(self._text, "token_embedding")
        whole = getattr(self._text, "cls_emb", None) is None and not getattr(self._text, "use_pad_mask", False)
        self.trims = bool(native and causal and whole and pool in ("argmax", "eos"))
        self._pool = pool

    def images(self, pixels: Tensor) -> Tensor:
        features: Tensor = self.model.encode_image(pixels, normalize=False)  # type: ignore[operator]
        return features

    def pooled(self, pixels: Tensor) -> Tensor:
        """What the image tower pools, before any projection into the embedding space; of a ResNet, its vectors."""
        visual: Any = self.model.visual
        if hasattr(visual, "trunk"):  # timm's: its head projects
            before: Tensor = visual.trunk(pixels)
            return before
        projection = getattr(visual, "proj", None)
        if projection is None:
            return self.images(pixels)
        visual.proj = None
        try:
            return self.images(pixels)
        finally:
            visual.proj = projection

    def texts(self, tokens: Tensor) -> Tensor:
        """Of a causal tower, tokens may be cut behind the last end: what is behind a token does not reach it."""
        if not self.trims or tokens.shape[1] == self._text.positional_embedding.shape[0]:
            features: Tensor = self.model.encode_text(tokens, normalize=False)  # type: ignore[operator]
            return features
        from open_clip.transformer import text_global_pool

        tower: Any = self._text
        length = tokens.shape[1]
        kind = tower.transformer.get_cast_dtype()
        x = tower.token_embedding(tokens).to(kind) + tower.positional_embedding[:length].to(kind)
        x = tower.transformer(x, attn_mask=tower.attn_mask[:length, :length])
        end = getattr(tower, "text_eos_id", getattr(tower, "eos_id", None))
        x = text_global_pool(tower.ln_final(x), tokens, self._pool, eos_token_id=end)
        projection = tower.text_projection
        if projection is None:
            return x  # type: ignore[no-any-return]
        return projection(x) if isinstance(projection, nn.Linear) else x @ projection  # type: ignore[no-any-return]


def build(config: dict[str, Any], place: str) -> nn.Module:
    """The model of a config, as open_clip.create_model chooses its class; its weights are whatever was drawn."""
    import open_clip
    from open_clip.coca_model import CoCa

    config = deepcopy(config)
    vision, text = config["vision_cfg"], config["text_cfg"]
    if vision.get("timm_model_name"):
        vision["timm_model_pretrained"] = False
    if text.get("hf_model_name"):
        text["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or text.get("hf_model_name")
    made: Any = open_clip.CLIP
    if custom:
        made = CoCa if "multimodal_cfg" in config else open_clip.CustomTextCLIP
    try:
        model: nn.Module = made(**config)
    except Exception as error:  # noqa: BLE001 - timm's and transformers' own errors: an unknown tower, no hub
        first = str(error).strip().splitlines()[:1] or [""]
        raise InputError(f"{place}: its towers cannot be built ({type(error).__name__}: {first[0][:200]})") from None
    return model


def load_state(model: nn.Module, state: State, place: str, weights: str) -> None:
    """Put weights into the model, each of the shape it has there."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(model, dict(state))
    if "positional_embedding" in state and not hasattr(model, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    checkpoint.put(model, state, place, weights)


def load_big_vision(model: nn.Module, path: Path, place: str) -> None:
    """Google's SigLIP .npz, by open_clip's own conversion."""
    from open_clip.convert import load_big_vision_weights

    try:
        load_big_vision_weights(model, str(path))
    except Exception as error:  # noqa: BLE001 - KeyError, RuntimeError, AssertionError alike say what does not fit
        raise InputError(f"{place}: weights {path} do not fit the architecture: {error!r:.200}") from None


def inferred(state: State, quick_gelu: bool) -> dict[str, Any]:
    """The config of OpenAI's ViT or ResNet whose weights these are (open_clip, build_model_from_openai_state_dict)."""
    if "visual.proj" in state:
        patch = state["visual.conv1.weight"].shape[-1]
        grid = round((state["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        vision: dict[str, Any] = {
            "layers": _blocks(state, "visual.transformer.resblocks."),
            "width": state["visual.conv1.weight"].shape[0],
            "patch_size": patch,
            "image_size": patch * grid,
        }
    else:
        grid = round((state["visual.attnpool.positional_embedding"].shape[0] - 1) ** 0.5)
        vision = {
            "layers": [_blocks(state, f"visual.layer{stage}.") for stage in (1, 2, 3, 4)],
            "width": state["visual.layer1.0.conv1.weight"].shape[0],
            "patch_size": None,
            "image_size": grid * 32,
        }
    width = state["ln_final.weight"].shape[0]
    return {
        "embed_dim": state["text_projection"].shape[1],
        "quick_gelu": quick_gelu,
        "vision_cfg": vision,
        "text_cfg": {
            "context_length": state["positional_embedding"].shape[0],
            "vocab_size": state["token_embedding.weight"].shape[0],
            "width": width,
            "heads": width // 64,
            "layers": _blocks(state, "transformer.resblocks."),
        },
    }


def _blocks(state: State, prefix: str) -> int:
    return len({name[len(prefix) :].split(".")[0] for name in state if name.startswith(prefix)})


def is_native(state: State) -> bool:
    """Whether `inferred` can say the shapes of these weights."""
    needed = {"text_projection", "positional_embedding", "token_embedding.weight", "ln_final.weight"}
    return needed <= set(state) and bool({"visual.proj", "visual.attnpool.positional_embedding"} & set(state))


def known_as(config: dict[str, Any], any_activation: bool = False) -> list[str]:
    """Names of registered architectures with this config."""
    names = []
    for name in architectures():
        other = registered(Encoder(name="any", arch=name, weights="untrained"))
        if any_activation:
            other["quick_gelu"] = config.get("quick_gelu")
        if other["embed_dim"] == config["embed_dim"] and differing(config, other) is None:
            names.append(name)
    return names


def settled(config: dict[str, Any]) -> dict[str, Any]:
    """A config with open_clip's defaults filled in, flat: {"vision_cfg.width": 768, …}. Tokenizers are left out."""
    from open_clip.model import CLIPTextCfg, CLIPVisionCfg

    flat: dict[str, Any] = {"embed_dim": config["embed_dim"], "quick_gelu": bool(config.get("quick_gelu"))}
    for part, kind in (("vision_cfg", CLIPVisionCfg), ("text_cfg", CLIPTextCfg)):
        names = {one.name for one in fields(kind)}
        for name, value in asdict(kind(**{k: v for k, v in config[part].items() if k in names})).items():
            if "tokenizer" not in name and "pretrained" not in name:
                flat[f"{part}.{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def differing(there: dict[str, Any], here: dict[str, Any]) -> tuple[str, Any, Any] | None:
    """The first setting in which two configs differ: (its name, there, here)."""
    one, other = settled(there), settled(here)
    for name, value in one.items():
        if value != other.get(name):
            return name, value, other.get(name)
    return None


def model_of(source: Source) -> tuple[nn.Module, dict[str, Any]]:
    """The model with its weights, and its config. Raises InputError where weights and architecture do not agree."""
    settings, config, path = source.settings, source.config, source.weights[0]
    if settings.arch is not None and config is not None:
        _agree(source.place, registered(settings), config, f"arch {settings.arch}", str(path.parent))
    if path.suffix == ".npz":
        if config is None:
            raise InputError(f"{source.place}: weights {path} do not say their architecture; give arch")
        model = build(config, source.place)
        load_big_vision(model, path, source.place)
        return model, config
    read = checkpoint.read(source.weights, source.place)
    if read.quick_gelu is not None and is_native(read.state):
        said = inferred(read.state, read.quick_gelu)
        if config is not None:
            _agree(source.place, config, said, f"arch {settings.arch}", str(path))
        config = config or said
    if config is None:
        raise InputError(_unsaid(source, read.state))
    if not source.preprocess and settings.arch is not None:
        check_activation(settings, config, published(file_sha256(path)))
    model = build(config, source.place)
    load_state(model, read.state, source.place, f"weights {settings.weights}")
    return model, config


def _agree(place: str, here: dict[str, Any], there: dict[str, Any], name: str, other: str) -> None:
    if different := differing(there, here):
        key, is_there, is_here = different
        also = f"; give arch: {name.removeprefix('arch ')}-quickgelu" if (key, is_there) == ("quick_gelu", True) else ""
        raise InputError(f"{place}: {key} is {is_there} in {other} and {is_here} in {name}{also}")


def _unsaid(source: Source, state: State) -> str:
    line = f"{source.place}: weights {source.settings.weights} do not say their activation; give arch"
    names = known_as(inferred(state, False), any_activation=True) if is_native(state) else []
    return f"{line}: {' or '.join(names)}" if names else line


def preprocess_of(source: Source, model: nn.Module) -> dict[str, Any]:
    """open_clip's PreprocessCfg for the model, as a dict.

    A config beside the weights and the registry's tag say theirs. A bare file does not: then what the registry says of
    its digest, or all tags of the architecture agree on, else open_clip's defaults, which are OpenAI's.
    """
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    chosen: dict[str, Any] = merge_preprocess_dict(PreprocessCfg(), source.preprocess)
    if not source.preprocess and source.settings.arch is not None:
        name = source.settings.arch.replace("/", "-")
        known = [published(file_sha256(path)) for path in source.weights]
        tags = [get_pretrained_cfg(name, tag) for tag in list_pretrained_tags_by_model(name)]
        told = [merge_preprocess_dict(PreprocessCfg(), one) for one in (known if any(known) else tags)]
        if told and all(one == told[0] for one in told):
            chosen = told[0]
    size, said = _sides(model.visual.image_size), source.preprocess.get("size")  # type: ignore[union-attr]
    if said is not None and _sides(said) != size:
        raise InputError(f"{source.place}: preprocess_cfg.size is {said}, and its image tower takes {size}")
    return {**chosen, "size": size}


def _sides(size: Any) -> tuple[int, int]:
    """(height, width) of 224, [224, 224] or [3, 224, 224]."""
    return (size, size) if isinstance(size, int) else (size[-2], size[-1]) if len(size) > 1 else (size[0], size[0])
