"""Where an encoder's weights, model config and tokenizer are, by a recipe's settings. Needs no torch."""

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import InputError
from schemas.recipe import Encoder

OPEN_CLIP_CONFIG = "open_clip_config.json"
OWN_CONFIGS = Path(__file__).parent / "configs"
_OPEN_CLIP_FILES = [
    "open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin",
    "open_clip_pytorch_model.pth", "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
]  # fmt: skip
"""open_clip's own order of preference (factory.py)."""
_HUGGING_FACE_FILES = ["model.safetensors", "pytorch_model.bin"]


@dataclass(frozen=True)
class Source:
    """What the settings name, found but not read."""

    kind: Literal["untrained", "open_clip", "hugging_face"]
    settings: Encoder
    weights: tuple[Path, ...] = ()
    """One file, or the shards that an index names; none for untrained."""
    config: dict[str, Any] | None = None
    """open_clip's model config, or Hugging Face's; None: the weights themselves must say it (an OpenAI archive)."""
    preprocess: dict[str, Any] = field(default_factory=dict)
    """What a config beside the weights, or the registry's tag, says of preprocessing."""
    folder: Path | None = None
    """Where tokenizer files may lie beside the weights."""

    @property
    def place(self) -> str:
        """How errors name it."""
        return f"encoder {self.settings.name}"


def find(settings: Encoder) -> Source:
    """Raises InputError where weights, config or architecture are not what, or where, the settings say."""
    config = None if settings.arch is None else registered(settings)
    if settings.weights == "untrained":
        if config is None:
            raise InputError(f"encoder {settings.name}: untrained weights need arch, such as pairmill-tiny")
        return Source("untrained", settings, config=config)
    path = Path(settings.weights.removeprefix("local-dir:")).expanduser()
    if path.is_dir():
        return _folder(settings, path)
    if path.is_file():
        if settings.arch is None and (path.parent / OPEN_CLIP_CONFIG).is_file():
            return _open_clip_folder(settings, path.parent, path)
        return Source("open_clip", settings, (path,), config, folder=path.parent)
    if settings.arch is None or "/" in settings.weights:
        way = "" if "/" in settings.weights else "; a tag of open_clip's registry needs arch too"
        raise InputError(f"encoder {settings.name}: weights {settings.weights} is no file and no folder{way}")
    return _tagged(settings, settings.arch, config)


@lru_cache(1)
def _configs() -> dict[str, Path]:
    spec = find_spec("open_clip")
    if spec is None or not spec.submodule_search_locations:
        raise InputError("encoders need open_clip and torch: pip install 'pairmill[encode]'")
    folders = [Path(spec.submodule_search_locations[0]) / "model_configs", OWN_CONFIGS]
    return {path.stem: path for folder in folders for path in folder.glob("*.json")}


def architectures() -> list[str]:
    """Names that `arch` may have: open_clip's and ours."""
    return sorted(_configs())


def registered(settings: Encoder) -> dict[str, Any]:
    """The model config of `settings.arch`."""
    name = (settings.arch or "").replace("/", "-")
    if name not in _configs():
        near = nearest(name, architectures())
        raise InputError(f"encoder {settings.name}: arch {settings.arch} is not one of open_clip's{near}")
    return read_json(_configs()[name], settings)


def nearest(name: str, known: Iterable[str]) -> str:
    """The end of a sentence: the known name most like this one, or all of a few."""
    names = {known_name.lower(): known_name for known_name in known}
    near = difflib.get_close_matches(name.lower(), names, n=1, cutoff=0.5)
    return f"; did you mean {names[near[0]]}?" if near else f"; known: {', '.join(sorted(names.values())[:12])}"


def read_json(path: Path, settings: Encoder) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"encoder {settings.name}: {path} cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"encoder {settings.name}: {path} is no JSON object")
    return value


def _folder(settings: Encoder, folder: Path) -> Source:
    if (folder / OPEN_CLIP_CONFIG).is_file():
        present = {
            path.name: path for path in sorted(folder.iterdir()) if path.suffix in (".safetensors", ".bin", ".pth")
        }
        named = [present[name] for name in _OPEN_CLIP_FILES if name in present]
        others = sorted(present.values(), key=lambda path: (path.suffix != ".safetensors", path.name))
        if not present:
            raise InputError(f"encoder {settings.name}: {folder} has no weights: .safetensors, .bin or .pth")
        return _open_clip_folder(settings, folder, (named or others)[0])
    if not (folder / "config.json").is_file():
        raise InputError(f"encoder {settings.name}: {folder} has neither {OPEN_CLIP_CONFIG} nor config.json")
    return _hugging_face_folder(settings, folder)


def _open_clip_folder(settings: Encoder, folder: Path, weights: Path) -> Source:
    said = read_json(folder / OPEN_CLIP_CONFIG, settings)
    if "model_cfg" not in said:
        raise InputError(f"encoder {settings.name}: {folder / OPEN_CLIP_CONFIG} has no model_cfg")
    return Source("open_clip", settings, (weights,), said["model_cfg"], said.get("preprocess_cfg") or {}, folder)


def _hugging_face_folder(settings: Encoder, folder: Path) -> Source:
    config = read_json(folder / "config.json", settings)
    if config.get("model_type") not in ("clip", "siglip"):
        raise InputError(
            f"encoder {settings.name}: model_type {config.get('model_type')!r} of {folder / 'config.json'} "
            "is not read; clip and siglip are"
        )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = sorted(set(read_json(index, settings).get("weight_map", {}).values()))
        weights = tuple(folder / Path(shard).name for shard in shards)
    else:
        weights = tuple(folder / name for name in _HUGGING_FACE_FILES if (folder / name).is_file())[:1]
    missing = [path for path in weights if not path.is_file()]
    if missing or not weights:
        raise InputError(
            f"encoder {settings.name}: {missing[0] if missing else folder / _HUGGING_FACE_FILES[0]} is missing"
        )
    said = folder / "preprocessor_config.json"
    if not said.is_file():
        raise InputError(f"encoder {settings.name}: {said} is missing; it says how images are resized and normalised")
    return Source("hugging_face", settings, weights, config, read_json(said, settings), folder)


def _tagged(settings: Encoder, arch: str, config: dict[str, Any] | None) -> Source:
    """Weights of open_clip's registry, from its cache or, where there is a network, the web."""
    import open_clip.pretrained as registry

    name = arch.replace("/", "-")
    said = registry.get_pretrained_cfg(name, settings.weights)
    if not said:
        tags = registry.list_pretrained_tags_by_model(name)
        near = nearest(settings.weights, tags) if tags else "; it has none"
        raise InputError(f"encoder {settings.name}: weights {settings.weights} is no file, and no tag of {arch}{near}")
    check_activation(settings, config or {}, said)
    try:
        path = _downloaded(said)
    except Exception as error:  # noqa: BLE001 - whatever a hub or the network raises, the way out is the same
        first = str(error).strip().split("\n")[0][:200]
        raise InputError(
            f"encoder {settings.name}: weights {settings.weights} of {arch} are not in the cache and could not be "
            f"fetched ({type(error).__name__}: {first}); download them elsewhere and give their path"
        ) from None
    return Source("open_clip", settings, (path,), config, dict(said))


def check_activation(settings: Encoder, config: dict[str, Any], said: dict[str, Any]) -> None:
    """Raises InputError where the registry knows the weights to be trained with the other activation."""
    if said and bool(said.get("quick_gelu")) != bool(config.get("quick_gelu")):
        name = (settings.arch or "").replace("/", "-").removesuffix("-quickgelu")
        kind, other = ("QuickGELU", f"{name}-quickgelu") if said.get("quick_gelu") else ("GELU", name)
        raise InputError(
            f"encoder {settings.name}: weights {settings.weights} were trained with {kind}; give arch: {other}"
        )


def published(sha256: str) -> dict[str, Any]:
    """What the registry says of a file by its digest, which the URLs of OpenAI's and open_clip's releases carry."""
    import open_clip.pretrained as registry

    for arch, tag in registry.list_pretrained():
        said: dict[str, Any] = registry.get_pretrained_cfg(arch, tag)
        url = said.get("url", "")
        parts = url.split("/")
        known = (
            parts[-2] if "openaipublic" in url else Path(url).stem.rpartition("-")[2] if "mlfoundations" in url else ""
        )
        if len(known) >= 8 and sha256.startswith(known):
            return dict(said)
    return {}


def _downloaded(said: dict[str, Any]) -> Path:
    """The file of a tag: from a cache, and only else from the hub, or the web where it is on no hub."""
    import huggingface_hub
    import open_clip.pretrained as registry

    repository, _, name = said.get("hf_hub", "").rpartition("/")
    names = [registry.HF_SAFE_WEIGHTS_NAME, registry.HF_WEIGHTS_NAME]
    if name:
        names = [str(Path(name).with_suffix(".safetensors")), name]
    for cached in names if repository else ():
        path = huggingface_hub.try_to_load_from_cache(repository, cached)
        if isinstance(path, str):
            return Path(path)
    url = said.get("url", "")
    if repository and not (url and Path("~/.cache/clip", url.rpartition("/")[2]).expanduser().is_file()):
        huggingface_hub.HfApi().model_info(repository, timeout=10)  # at once where there is no hub: a download retries
        return Path(registry.download_pretrained(said))
    return Path(registry.download_pretrained(said, prefer_hf_hub=False))
