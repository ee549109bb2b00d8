"""Heads on disk and what they make of vectors, beside the same layers in torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

from pipeline.errors import InputError
from pipeline.heads.head import BLOCK, Evaluator, Head, Spec, read_spec, read_tensors, written

SHA = "ab" * 32
MODULES = {"none": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid, "softmax": lambda: nn.Softmax(dim=-1)}


def spec(**changes: Any) -> Spec:
    return Spec.model_validate(
        {"column": "nsfw", "encoder_sha256": SHA, "layers": [8, 4, 1], "activation": ["relu", "sigmoid"], **changes}
    )


def random_head(seed: int = 0, **changes: Any) -> Head:
    rng = np.random.default_rng(seed)
    made = spec(**changes)
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in made.tensors().items()}
    if "std" in tensors:
        tensors["std"] = np.abs(tensors["std"]) + np.float32(0.1)
    return Head(made, tensors)


def in_torch(head: Head, vectors: np.ndarray) -> np.ndarray:
    """The layers one after another, nothing folded."""
    rows = torch.from_numpy(vectors)
    if head.spec.normalisation == "mean_std":
        rows = (rows - torch.from_numpy(head.tensors["mean"])) / torch.from_numpy(head.tensors["std"])
    for i, activation in enumerate(head.spec.activation):
        weight, bias = (torch.from_numpy(head.tensors[f"layers.{i}.{kind}"]) for kind in ("weight", "bias"))
        rows = MODULES[activation]()(nn.functional.linear(rows, weight, bias))
    return rows.numpy()


def units(rows: int, dim: int) -> np.ndarray:
    vectors = np.random.default_rng(7).normal(size=(rows, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalisation": "mean_std"},
        {"layers": [8, 16, 6, 4, 1], "activation": ["none", "none", "relu", "none"]},
        {"layers": [8, 16, 6, 1], "activation": ["none", "none", "none"], "normalisation": "mean_std"},
        {"layers": [8, 3], "activation": ["softmax"], "labels": ["a", "b", "c"]},
    ],
)
def test_scores_are_those_of_the_layers_one_after_another(changes: dict[str, Any]) -> None:
    head = random_head(**changes)
    vectors = units(50, 8)
    np.testing.assert_allclose(Evaluator(head)(vectors), in_torch(head, vectors), rtol=1e-5, atol=2e-6)


def test_a_linear_network_is_one_product() -> None:
    head = random_head(layers=[8, 16, 6, 1], activation=["none", "none", "none"])
    assert len(Evaluator(head).layers) == 1


def test_a_head_of_raw_input_gets_the_vectors_at_their_length() -> None:
    head = random_head(input="raw")
    vectors, norms = units(20, 8), np.linspace(5, 30, 20, dtype=np.float32)
    expected = in_torch(head, vectors * norms[:, None])
    np.testing.assert_allclose(Evaluator(head)(vectors, norms), expected, rtol=1e-5, atol=2e-6)


def test_rows_beyond_one_block_are_all_there_in_order() -> None:
    head, vectors = random_head(), units(2 * BLOCK + 3, 8)
    np.testing.assert_allclose(Evaluator(head)(vectors), in_torch(head, vectors), rtol=1e-5, atol=2e-6)
    assert Evaluator(head)(vectors[:0]).shape == (0, 1)


def test_a_head_survives_its_two_files() -> None:
    head = random_head(normalisation="mean_std", source="a test")
    data, tensors = written(head)
    again = read_tensors(read_spec(data, "h.json"), tensors, "h.safetensors")
    assert again.spec == head.spec
    for name, values in head.tensors.items():
        np.testing.assert_array_equal(again.tensors[name], values)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"input": "text"}, "input: input should be 'unit', 'raw' or 'pixels'"),
        ({"input": "pixels"}, "give encoder_sha256 for a head over vectors, backbone for one over pixels"),
        ({"layers": [8]}, "layers: list should have at least 2 items"),
        ({"activation": ["relu"]}, "activation has 1 entries for 2 layers"),
        ({"activation": ["softmax", "none"]}, "softmax is an activation of the last layer alone"),
        ({"labels": ["a", "b"]}, "2 labels for 1 outputs"),
        ({"layers": [8, 4, 2]}, "0 labels for 2 outputs"),
        ({"layers": [8, 4, 2], "labels": ["a", "a"]}, "labels are names of their own"),
        ({"encoder_sha256": "abc"}, "encoder_sha256: string should match pattern"),
        ({"colum": "x"}, "colum: extra inputs are not permitted"),
    ],
)
def test_a_spec_that_cannot_be_is_one_line(changes: dict[str, Any], said: str) -> None:
    given = json.loads(spec().model_dump_json()) | changes
    with pytest.raises(InputError, match=r"^heads/h.json: ") as caught:
        read_spec(json.dumps(given).encode(), "heads/h.json")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda tensors: tensors.pop("layers.1.bias"), "tensor layers.1.bias is missing"),
        (lambda tensors: tensors.update({"layers.2.bias": np.zeros(1, np.float32)}), "layers.2.bias belongs to no"),
        (lambda tensors: tensors.update({"layers.0.bias": np.zeros(5, np.float32)}), r"is \[5\], not \[4\]"),
        (lambda tensors: tensors["layers.0.weight"].fill(np.nan), "layers.0.weight holds what is no finite float"),
        (lambda tensors: tensors["std"].fill(0), "std holds what is not above 0"),
    ],
)
def test_tensors_that_are_not_as_the_spec_says_are_named(edit: Any, said: str, tmp_path: Path) -> None:
    head = random_head(normalisation="mean_std")
    tensors = dict(head.tensors)
    edit(tensors)
    save_file(tensors, tmp_path / "h.safetensors")
    with pytest.raises(InputError, match=said):
        read_tensors(head.spec, (tmp_path / "h.safetensors").read_bytes(), "h.safetensors")


def test_bytes_that_are_no_safetensors_are_one_line() -> None:
    with pytest.raises(InputError, match=r"h\.safetensors: is no safetensors file"):
        read_tensors(spec(), b"not at all", "h.safetensors")
