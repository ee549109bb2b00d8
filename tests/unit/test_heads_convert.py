"""Published heads, rebuilt in torch as their authors define them with random weights, give the same scores."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from jobs.heads import main
from pipeline.errors import InputError
from pipeline.heads.convert import convert
from pipeline.heads.head import Evaluator, read_spec, read_tensors
from tests.unit.test_heads import SHA, units

torch.set_num_threads(1)


class Aesthetic(nn.Module):
    """improved-aesthetic-predictor's MLP; with `relu` the one of avaclipmlp_inf_wds-relu.py."""

    def __init__(self, relu: bool) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs, drop in ((768, 1024, 0.2), (1024, 128, 0.2), (128, 64, 0.1), (64, 16, None)):
            layers.append(nn.Linear(inputs, outputs))
            layers += [nn.ReLU()] if relu else []
            layers += [nn.Dropout(drop)] if drop else []
        self.layers = nn.Sequential(*layers, nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Normalization(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.randn(dim) * 0.02)
        self.register_buffer("variance", torch.rand(dim) * 0.002 + 1e-5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.mean) / (self.variance.sqrt() + 1e-10)


class Nsfw(nn.Module):
    """CLIP-based-NSFW-Detector's heads for B/32 (512 inputs) and L/14 (768)."""

    def __init__(self, widths: list[int]) -> None:
        super().__init__()
        self.norm = Normalization(widths[0])
        self.count = len(widths) - 1
        for i in range(self.count):
            setattr(self, f"linear_{i + 1}", nn.Linear(widths[i], widths[i + 1]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(x)
        for i in range(1, self.count):
            x = torch.relu(getattr(self, f"linear_{i}")(x))
        return torch.sigmoid(getattr(self, f"linear_{self.count}")(x))


class NsfwH14(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in ((1024, 1024), (1024, 2048), (2048, 1024), (1024, 256), (256, 128)):
            layers += [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(128, 16), nn.Linear(16, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


HEADS = {
    "aesthetic linear": ("laion-aesthetic", lambda: Aesthetic(relu=False), 768),
    "aesthetic relu": ("laion-aesthetic", lambda: Aesthetic(relu=True), 768),
    "aesthetic sa_0_4": ("laion-aesthetic", lambda: nn.Linear(512, 1), 512),
    "nsfw b32": ("laion-nsfw", lambda: Nsfw([512, 32, 32, 1]), 512),
    "nsfw l14": ("laion-nsfw", lambda: Nsfw([768, 64, 512, 256, 1]), 768),
    "nsfw h14": ("laion-nsfw", NsfwH14, 1024),
}


def saved(name: str, folder: Path) -> tuple[nn.Module, Path]:
    torch.manual_seed(3)
    model = HEADS[name][1]().eval()
    torch.save(model.state_dict(), folder / "published.pth")
    return model, folder / "published.pth"


@pytest.mark.parametrize("name", HEADS)
def test_a_converted_head_scores_as_the_published_one(name: str, tmp_path: Path) -> None:
    kind, _, dim = HEADS[name]
    model, path = saved(name, tmp_path)
    head, published = convert(kind, str(path), SHA)
    vectors = units(200, dim)
    with torch.no_grad():
        expected = model(torch.from_numpy(vectors)).numpy()
    np.testing.assert_allclose(Evaluator(head)(vectors), expected, rtol=2e-5, atol=2e-6)
    assert head.spec.input == "unit"
    assert published.trained_on


def test_a_checkpoint_with_its_state_dict_inside_is_read(tmp_path: Path) -> None:
    model = nn.Linear(512, 1)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / "lightning.ckpt")
    head, _ = convert("laion-aesthetic", str(tmp_path / "lightning.ckpt"), SHA)
    assert head.spec.layers == [512, 1]


def test_a_head_of_another_shape_is_refused_with_the_tensor_that_differs(tmp_path: Path) -> None:
    model, path = saved("nsfw l14", tmp_path)
    state = model.state_dict()
    state["linear_2.weight"] = torch.zeros(500, 64)
    torch.save(state, path)
    with pytest.raises(InputError, match=r"layers.1.weight is \[500, 64\], not \[512, 64\]"):
        convert("laion-nsfw", str(path), SHA)
    del state["linear_1.bias"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"nearest is CLIP-based-NSFW-Detector L/14, and it lacks linear_1.bias"):
        convert("laion-nsfw", str(path), SHA)


def test_a_pickle_that_would_run_something_is_refused(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"weight": Runs()}, tmp_path / "bad.pth")
    with pytest.raises(InputError, match="is no file of tensors alone"):
        convert("laion-aesthetic", str(tmp_path / "bad.pth"), SHA)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", ["clip_autokeras_binary_nsfw.zip", "model.h5"])
def test_keras_models_are_refused_with_where_their_conversion_is(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(InputError, match=r"is a Keras model.* as \.pth files"):
        convert("laion-nsfw", str(tmp_path / name), SHA)


def test_files_that_hold_no_head_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "junk.pth").write_bytes(b"junk")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, said in (("junk.pth", "tensors alone"), ("list.pth", "no state dict"), ("none.pth", "cannot be read")):
        with pytest.raises(InputError, match=said) as caught:
            convert("laion-nsfw", str(tmp_path / name), SHA)
        assert "\n" not in str(caught.value)


def test_the_command_writes_a_head_bound_to_the_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, path = saved("nsfw b32", tmp_path)
    out = tmp_path / "nsfw.json"
    command = ["laion-nsfw", str(path), "--out", str(out)]
    assert main([*command, "--encoder-sha256", SHA]) == 0
    assert "OpenAI's ViT-B/32" in capsys.readouterr().out
    spec = read_spec(out.read_bytes(), "nsfw.json")
    assert spec.encoder_sha256 == SHA
    assert read_tensors(spec, out.with_suffix(".safetensors").read_bytes(), "nsfw").spec.column == "nsfw"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ([], "--encoder-sha256 HEX"),
        (["--encoder-sha256", "abc"], "expected 64 lower-case hex digits"),
        (["--recipe", "default"], "is none of recipe default's encoders; there are none"),
        (["--encoder-sha256", SHA, "--out", "nsfw"], "give a name that ends in .json"),
    ],
)
def test_the_command_says_what_it_lacks(
    flags: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["laion-nsfw", str(tmp_path / "none.pth"), "--out", str(tmp_path / "nsfw.json"), *flags]
    assert main(command) == 2
    assert said in capsys.readouterr().err
