"""A head over pixels, with its backbone on a device: images in, scores out."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.heads.head import Evaluator, Floats, Head


class PixelModel:
    """Images as `preprocess` makes them, through a timm backbone in float32 and the head's layers."""

    def __init__(self, head: Head, place: str, device: str = "cpu") -> None:
        """Raises InputError, naming `place` and the tensor, where the backbone and its weights do not agree."""
        backbone = head.spec.backbone
        assert backbone is not None
        model = backbone_of(backbone.arch, place)
        check_state(model, {name: values.shape for name, values in head.backbone.items()}, place)
        features = int(model.num_features)
        if features != head.spec.layers[0]:
            raise InputError(
                f"{place}: {backbone.arch} gives {features} features, its layers read {head.spec.layers[0]}"
            )
        model.load_state_dict({name: torch.from_numpy(np.array(values)) for name, values in head.backbone.items()})
        self.preprocess = backbone.preprocess()
        self.outputs = head.spec.layers[-1]
        self._device = torch.device(device)
        self._model = model.eval().requires_grad_(False).to(self._device)
        self._layers = Evaluator(head)
        self._mean = torch.tensor(backbone.mean, device=self._device).view(1, 3, 1, 1)
        self._std = torch.tensor(backbone.std, device=self._device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def __call__(self, pixels: NDArray[np.uint8]) -> Floats:
        """uint8 RGB [n, height, width, 3] → [n, outputs]."""
        images = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
        features: Floats = self._model(images.div_(255).sub_(self._mean).div_(self._std)).float().cpu().numpy()
        return self._layers(features)


def backbone_of(arch: str, place: str) -> Any:
    """timm's model without its classifier, of random weights. Raises InputError where timm has none of that name."""
    import timm

    if not timm.is_model(arch):
        raise InputError(f"{place}: {arch} is no architecture of timm's")
    return timm.create_model(arch, pretrained=False, num_classes=0)


def check_state(model: Any, shapes: dict[str, tuple[int, ...]], place: str) -> None:
    """Raises InputError naming the first tensor that is not as the model has it."""
    wanted = {name: list(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if name not in shapes:
            raise InputError(f"{place}: tensor backbone.{name} is missing")
        if name not in wanted:
            raise InputError(f"{place}: tensor backbone.{name} is not the backbone's")
        if list(shapes[name]) != wanted[name]:
            raise InputError(f"{place}: tensor backbone.{name} is {list(shapes[name])}, not {wanted[name]}")
