"""Zero-shot classification and retrieval as CLIP_benchmark 1.6.2 computes them, from a copy of its own."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tests.evaluation_sets import COLOURS, picture
from tests.tiny_clip import tiny_clip

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
from pipeline import clip  # noqa: E402
from pipeline.evaluate.metrics import average_precision, hits, mean_per_class  # noqa: E402
from pipeline.evaluate.retrieval import retrieval  # noqa: E402
from pipeline.evaluate.zero_shot import classifier  # noqa: E402

VERSION = "1.6.2"
PEER = Path.home() / ".cache" / "pairmill" / f"clip-benchmark-{VERSION}"
TEMPLATES = ["a photo of a {c}.", "a drawing of the {c}, seen from above.", "{c}"]


def _module(name: str) -> ModuleType:
    """One of its modules, without the packages that it pins: these two need torch, tqdm and scikit-learn alone."""
    path = PEER / "clip_benchmark" / "metrics" / f"{name}.py"
    if not path.is_file():
        wanted = ["install", "--quiet", "--no-deps", "--target", str(PEER), f"clip-benchmark=={VERSION}"]
        if subprocess.run([sys.executable, "-m", "pip", *wanted], capture_output=True).returncode:
            pytest.skip("clip-benchmark cannot be installed here")
    spec = importlib.util.spec_from_file_location(f"peer_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> tuple[clip.Clip, object, object, object]:
    """Our model, and open_clip's of the same folder with its preprocessing and tokenizer."""
    import open_clip

    torch.set_num_threads(1)
    folder = tiny_clip(tmp_path_factory.mktemp("model") / "tiny")
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return clip.load(folder), model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{folder}")


def test_the_classifier_and_its_metrics_are_clip_benchmarks(loaded: tuple) -> None:  # type: ignore[type-arg]
    import io

    from PIL import Image

    peer = _module("zeroshot_classification")
    ours, model, preprocess, tokenizer = loaded
    theirs = peer.zero_shot_classifier(model, tokenizer, list(COLOURS), TEMPLATES, "cpu", amp=False)
    weights = classifier(ours, [[name] for name in COLOURS], TEMPLATES)
    data = [picture(name, seed) for seed in range(5) for name in COLOURS]
    labels = np.arange(30) % 6
    batches = [(torch.stack([preprocess(Image.open(io.BytesIO(one))) for one in data]), torch.from_numpy(labels))]
    logits, truth = peer.run_classification(model, theirs, batches, "cpu", amp=False)
    scores = ours.encode_image(data) @ weights.T

    assert np.abs(weights - theirs.numpy().T).max() < 1e-5
    assert np.abs(100 * scores - logits.numpy()).max() < 1e-3
    for k in (1, 5):  # its accuracy() does this, and fails on numpy 2.4
        right = (logits.topk(k, dim=1).indices == truth[:, None]).any(dim=1)
        assert (hits(scores, labels, k) == right.numpy()).all()
    balanced = peer.balanced_accuracy_score(truth, logits.argmax(dim=1))
    assert mean_per_class(scores.argmax(axis=1), labels) == pytest.approx(balanced)
    positive = np.eye(6)[labels]
    precision = peer.average_precision_per_class(torch.from_numpy(scores), torch.from_numpy(positive))
    ours_precision = [average_precision(scores[:, one], positive[:, one] > 0) for one in range(6)]
    assert ours_precision == pytest.approx(precision.numpy(), abs=1e-6)


def test_recall_is_clip_benchmarks() -> None:
    peer = _module("zeroshot_retrieval")
    rng = np.random.default_rng(0)
    images = clip.unit(rng.normal(size=(40, 16)))
    image_of = np.repeat(np.arange(40), 5)
    texts = clip.unit(images[image_of] + rng.normal(size=(200, 16)) * 0.6)
    pairs = torch.zeros(200, 40, dtype=torch.bool)
    pairs[torch.arange(200), torch.from_numpy(image_of)] = True
    scores = torch.from_numpy(texts @ images.T)
    found = {row.metric: row.value for row in retrieval("t", images, texts, image_of)}

    for k in (1, 5, 10):
        there = (peer.recall_at_k(scores.T, pairs.T, k) > 0).float().mean().item()
        back = (peer.recall_at_k(scores, pairs, k) > 0).float().mean().item()
        assert found[f"image_to_text_recall@{k}"] == pytest.approx(there)
        assert found[f"text_to_image_recall@{k}"] == pytest.approx(back)
