"""Weights files as state dicts: only tensors are read, code in a file is refused."""

import pickle
import re
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from pipeline.encoders.archive import is_archive, read_archive
from pipeline.errors import InputError

State = dict[str, torch.Tensor]
_WRAPPERS = ("module.", "_orig_mod.")
"""What DistributedDataParallel and torch.compile put before every name."""
_NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")
"""Numbers that OpenAI's archives keep among their tensors."""
_LOGITS = ("logit_scale", "logit_bias")
"""A number each, or a vector of one; no vector needs them, and they may be absent."""
_CONSTANTS = ("attn_mask", "position_ids")
"""What older checkpoints carry beside weights."""


@dataclass(frozen=True)
class Checkpoint:
    """A state dict; `quick_gelu` where the file's own code says the activation, as a TorchScript archive's does."""

    state: State
    quick_gelu: bool | None = None


def read(paths: Sequence[Path], place: str) -> Checkpoint:
    """Read one file, or the shards of one; `place` begins errors.

    Raises InputError where a file is broken, holds no state dict, or is a pickle that asks for more than tensors.
    """
    state: State = {}
    quick_gelu = None
    for path in paths:
        try:
            if path.suffix == ".safetensors":
                from safetensors.torch import load_file

                found: Any = load_file(path)
            elif is_archive(path):
                found, quick_gelu = read_archive(path)
            else:
                found = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:
            asked = re.search(r"GLOBAL ([\w.]+)", str(error)) or re.match(r"([\w.]+)", str(error))
            name = asked.group(1) if asked else "something"
            raise InputError(
                f"{place}: weights {path} are refused: their pickle asks for {name}, and only tensors are loaded; save "
                "the state dict alone, or as .safetensors"
            ) from None
        except Exception as error:  # noqa: BLE001 - zipfile, safetensors and torch each raise their own on broken bytes
            first = (str(error).strip().splitlines() or [""])[0][:200]
            raise InputError(f"{place}: weights {path} cannot be read: {type(error).__name__}: {first}") from None
        state.update(_state_dict(found, path, place))
    return Checkpoint(state, quick_gelu)


def _state_dict(found: Any, path: Path, place: str) -> State:
    """The state dict of a file, of a training checkpoint its `state_dict`; names as the model's own."""
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not isinstance(found, dict) or not found:
        raise InputError(f"{place}: weights {path} hold a {type(found).__name__}, not a state dict")
    strange = [name for name, value in found.items() if not isinstance(value, torch.Tensor)]
    if strange:
        raise InputError(f"{place}: weights {path} hold no state dict: {strange[0]} is no tensor")
    state: State = {str(name): value for name, value in found.items() if name not in _NO_WEIGHTS}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def put(model: nn.Module, state: State, place: str, weights: str) -> None:
    """Put weights into a model that has exactly these, in name and shape.

    Raises InputError naming the first key that differs, with its shape there and here.
    """
    own = model.state_dict()
    logits = {name: value.reshape(own[name].shape) for name, value in state.items() if name in _LOGITS and name in own}
    state = {name: value for name, value in state.items() if name.rsplit(".", 1)[-1] not in (*_LOGITS, *_CONSTANTS)}
    expected = {name: value for name, value in own.items() if name not in _LOGITS}
    for name, tensor in expected.items():
        if name not in state:
            near = next((other for other in state if other.endswith(name.rsplit(".", 2)[-1])), None)
            also = f"; they have {near} {_shape(state[near])}" if near else ""
            raise InputError(f"{place}: {weights} lack {name} {_shape(tensor)} of the architecture{also}")
        if state[name].shape != tensor.shape:
            raise InputError(
                f"{place}: {name} is {_shape(state[name])} in {weights} and {_shape(tensor)} in the architecture"
            )
    for name in state:
        if name not in expected:
            raise InputError(f"{place}: {name} {_shape(state[name])} of {weights} is not in the architecture")
    model.load_state_dict({**state, **logits}, strict=False)


def _shape(tensor: torch.Tensor) -> str:
    return "×".join(str(side) for side in tensor.shape) or "scalar"
