"""LAION's published heads as ours: PyTorch files of state dicts, read without running anything in them.

| kind | file | published in |
| --- | --- | --- |
| laion-aesthetic | sac+logos+ava1-l14-linearMSE.pth | christophschuhmann/improved-aesthetic-predictor |
| | ava+logos-l14-reluMSE.pth | the same, avaclipmlp_inf_wds-relu.py |
| | sa_0_4_vit_l_14_linear.pth (and b_32, b_16) | LAION-AI/aesthetic-predictor |
| laion-nsfw | clip_ViT-B-32_openai_binary_nsfw_head.pth | LAION-AI/CLIP-based-NSFW-Detector, src/models.py |
| | clip_ViT-L-14_openai_binary_nsfw_head.pth, h14_nsfw.pth | the same |

| laion-watermark | watermark_model_v1.pt | LAION-AI/LAION-5B-WatermarkDetection, example_use.py |

The watermark detector reads pixels; all others read vectors of length 1. The NSFW detector's first models are Keras's,
for which one needs TensorFlow; the .pth files are LAION's own conversion of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.heads.head import Backbone, Head, Spec, checked

WATERMARK: Final = "laion-watermark"
EPSILON: Final = 1e-10
"""Added to the NSFW heads' standard deviation (their Normalization)."""


@dataclass(frozen=True)
class Published:
    name: str
    layers: tuple[str, ...]
    """Prefix of each layer's tensors."""
    widths: tuple[int, ...]
    """Outputs of each layer; what the first one reads is taken from the file."""
    activation: tuple[Any, ...]
    trained_on: str
    normalised: bool = False

    def tensors(self) -> set[str]:
        tensors = {f"{layer}{kind}" for layer in self.layers for kind in ("weight", "bias")}
        return tensors | ({"norm.mean", "norm.variance"} if self.normalised else set())


def _sequential(*places: int) -> tuple[str, ...]:
    return tuple(f"layers.{place}." for place in places)


def _numbered(count: int) -> tuple[str, ...]:
    return tuple(f"linear_{number}." for number in range(1, count + 1))


_L14 = "OpenAI's ViT-L/14"
PUBLISHED: Final[dict[str, tuple[Published, ...]]] = {
    "laion-aesthetic": (
        # Dropout alone between the layers: places 1, 3 and 5.
        Published("improved-aesthetic-predictor, linear", _sequential(0, 2, 4, 6, 7), (1024, 128, 64, 16, 1),
                  ("none",) * 5, _L14),
        Published("improved-aesthetic-predictor, ReLU", _sequential(0, 3, 6, 9, 11), (1024, 128, 64, 16, 1),
                  ("relu",) * 4 + ("none",), _L14),
        Published("aesthetic-predictor", ("",), (1,), ("none",), "the OpenAI CLIP in its file's name"),
    ),
    "laion-nsfw": (
        Published("CLIP-based-NSFW-Detector B/32", _numbered(3), (32, 32, 1), ("relu", "relu", "sigmoid"),
                  "OpenAI's ViT-B/32", normalised=True),
        Published("CLIP-based-NSFW-Detector L/14", _numbered(4), (64, 512, 256, 1), ("relu",) * 3 + ("sigmoid",),
                  _L14, normalised=True),
        # Its last two layers have nothing between them, and its output is a regression's: about 0 to 1.
        Published("CLIP-based-NSFW-Detector H/14", _sequential(0, 3, 6, 9, 12, 15, 16),
                  (1024, 2048, 1024, 256, 128, 16, 1), ("relu",) * 5 + ("none",) * 2, "LAION's ViT-H-14 (laion2b)"),
    ),
}  # fmt: skip
COLUMNS: Final = {"laion-aesthetic": "aesthetic", "laion-nsfw": "nsfw", WATERMARK: "pwatermark"}
_BACKBONE: Final = Backbone(
    arch="efficientnet_b3", size=(256, 256), mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
    interpolation="bilinear", resize_mode="squash",
)  # fmt: skip
_CLASSIFIER: Final = {"classifier.0.": (625, 1536), "classifier.3.": (256, 625), "classifier.5.": (2, 256)}


def convert_watermark(path: str, column: str | None = None) -> Head:
    """LAION's watermark detector: the probability of its first output, watermark, against its second, clear.

    Raises InputError for a file that is not it, naming the tensor that differs.
    """
    from pipeline.heads.pixels import backbone_of, check_state

    state = dict(_state_dict(path))
    own = {name: state.pop(name) for name in list(state) if name.startswith("classifier.")}
    spec = Spec(
        column=column or COLUMNS[WATERMARK], input="pixels", backbone=_BACKBONE, layers=[1536, 625, 256, 1],
        activation=["relu", "relu", "sigmoid"], source=f"LAION-5B-WatermarkDetection: {Path(path).name}",
    )  # fmt: skip
    tensors: dict[str, npt.NDArray[Any]] = {}
    for i, (name, shape) in enumerate(_CLASSIFIER.items()):
        for kind, wanted in (("weight", shape), ("bias", shape[:1])):
            values = own.pop(f"{name}{kind}", None)
            if values is None or values.shape != wanted:
                said = "is missing" if values is None else f"is {list(values.shape)}, not {list(wanted)}"
                raise InputError(f"{path}: is no {WATERMARK} model; tensor {name}{kind} {said}")
            # A softmax of two is the sigmoid of their difference.
            tensors[f"layers.{i}.{kind}"] = values if i < 2 else values[:1] - values[1:]
    if own:
        raise InputError(f"{path}: is no {WATERMARK} model; it also has {min(own)}")
    check_state(backbone_of(_BACKBONE.arch, path), {name: values.shape for name, values in state.items()}, path)
    return Head(spec, checked(spec, tensors, path), state)


def convert(kind: str, path: str, encoder_sha256: str, column: str | None = None) -> tuple[Head, Published]:
    """The head in a published file, for the encoder of those weights, and what it was recognised as.

    Raises InputError for a file that is not one of PUBLISHED[kind], naming the tensor that differs.
    """
    state = _state_dict(path)
    keys = set(state)
    nearest = min(PUBLISHED[kind], key=lambda one: len(one.tensors() ^ keys))
    if odd := sorted(nearest.tensors() ^ keys):
        which = "lacks" if odd[0] in nearest.tensors() else "also has"
        raise InputError(f"{path}: is no {kind} head; the nearest is {nearest.name}, and it {which} {odd[0]}")
    first = state[f"{nearest.layers[0]}weight"]
    spec = Spec(
        column=column or COLUMNS[kind], encoder_sha256=encoder_sha256, layers=[int(first.shape[-1]), *nearest.widths],
        normalisation="mean_std" if nearest.normalised else "none", activation=list(nearest.activation),
        source=f"{nearest.name}: {Path(path).name}",
    )  # fmt: skip
    tensors: dict[str, npt.NDArray[Any]] = {
        f"layers.{i}.{kind_}": state[f"{layer}{kind_}"]
        for i, layer in enumerate(nearest.layers)
        for kind_ in ("weight", "bias")
    }
    if nearest.normalised:
        if not (state["norm.variance"] >= 0).all():
            raise InputError(f"{path}: tensor norm.variance holds what is below 0")
        tensors |= {"mean": state["norm.mean"], "std": np.sqrt(state["norm.variance"]) + EPSILON}
    return Head(spec, checked(spec, tensors, path)), nearest


def _state_dict(path: str) -> Mapping[str, npt.NDArray[Any]]:
    """A file's tensors. Only tensors are unpickled: torch's weights_only."""
    if Path(path).is_dir() or path.endswith((".zip", ".h5", ".keras", ".pb")):
        raise InputError(
            f"{path}: is a Keras model, which only TensorFlow reads; LAION-AI/CLIP-based-NSFW-Detector has the same"
            " heads as .pth files below models/"
        )
    try:
        if path.endswith(".safetensors"):
            from safetensors.numpy import load_file

            return dict(load_file(path))
        import torch

        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception as error:  # what a broken file makes of an unpickler has no bounds
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise InputError(f"{path}: is no file of tensors alone: {reason}") from error
    if isinstance(loaded, Mapping) and isinstance(loaded.get("state_dict"), Mapping):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, Mapping) or not all(isinstance(value, torch.Tensor) for value in loaded.values()):
        raise InputError(f"{path}: holds no state dict; expected names and tensors")
    return {
        str(name): (value.float() if value.is_floating_point() else value).numpy() for name, value in loaded.items()
    }
