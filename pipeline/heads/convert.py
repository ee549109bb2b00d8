"""LAION's published heads as ours: PyTorch files of state dicts, read without running anything in them.

| kind | file | published in |
| --- | --- | --- |
| laion-aesthetic | sac+logos+ava1-l14-linearMSE.pth | christophschuhmann/improved-aesthetic-predictor |
| | ava+logos-l14-reluMSE.pth | the same, avaclipmlp_inf_wds-relu.py |
| | sa_0_4_vit_l_14_linear.pth (and b_32, b_16) | LAION-AI/aesthetic-predictor |
| laion-nsfw | clip_ViT-B-32_openai_binary_nsfw_head.pth | LAION-AI/CLIP-based-NSFW-Detector, src/models.py |
| | clip_ViT-L-14_openai_binary_nsfw_head.pth, h14_nsfw.pth | the same |

All of them read vectors of length 1. The NSFW detector's first models are Keras's, for which one needs TensorFlow; the
.pth files are LAION's own conversion of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pipeline.errors import InputError
from pipeline.heads.head import Floats, Head, Spec, checked

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
COLUMNS: Final = {"laion-aesthetic": "aesthetic", "laion-nsfw": "nsfw"}


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
        source=f"{nearest.name}, trained on {nearest.trained_on}: {Path(path).name}",
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


def _state_dict(path: str) -> Mapping[str, Floats]:
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
    return {str(name): value.float().numpy() for name, value in loaded.items()}
