"""jobs.evaluate and jobs.classify on small sets, beside open_clip's own zero-shot classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from jobs import classify as classify_job
from jobs import evaluate as evaluate_job
from tests.evaluation_sets import COLOURS, captions_set, colours_set, npy, picture, write_split
from tests.tiny_clip import tiny_clip

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")
from pipeline import clip  # noqa: E402

NAMES = ["red", "green", "blue"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tiny_clip(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def evaluate(tmp_path: Path, model: Path) -> Callable[..., list[dict[str, Any]]]:
    """Write a suite, run the job on tmp_path's datasets and return its rows."""

    def run(suite: str, *flags: str, out: str = "out") -> list[dict[str, Any]]:
        (tmp_path / "suite.yaml").write_text("data: .\n" + suite)
        argv = ["--model", str(model), "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / out), *flags]
        assert evaluate_job.main(argv) == 0
        rows: list[dict[str, Any]] = pq.read_table(tmp_path / out / "results.parquet").to_pylist()
        return rows

    return run


def _value(rows: list[dict[str, Any]], task: str, setting: str, metric: str, group: str | None = None) -> Any:
    (row,) = (
        row for row in rows
        if (row["task"], row["setting"], row["metric"]) == (task, setting, metric)
        and (group is None or row["group"] == group)
    )  # fmt: skip
    return row["value"]


def test_zero_shot_predicts_as_open_clips_own_classifier(tmp_path: Path, model: Path, evaluate: Any) -> None:
    import io

    import open_clip
    from PIL import Image

    colours_set(tmp_path / "colours", train=0)
    rows = evaluate("measures: [zero_shot]\ntasks: {colours: {}}")
    towers, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{model}")
    templates = [lambda name: f"a photo of a {name} disc.", lambda name: f"a {name} thing."]
    tokenizer = open_clip.get_tokenizer(f"local-dir:{model}")
    weights = open_clip.build_zero_shot_classifier(towers.eval(), tokenizer, list(COLOURS), templates, device="cpu")
    right = []
    for one in range(8):
        for place, name in enumerate(COLOURS):
            image = Image.open(io.BytesIO(picture(name, 100 * place + one)))
            with torch.no_grad():
                logits = towers.encode_image(preprocess(image)[None], normalize=True) @ weights
            right.append(int(logits.argmax()) == place)

    assert _value(rows, "colours", "zero_shot", "top1") == pytest.approx(np.mean(right))
    assert _value(rows, "colours", "chance", "top1") == pytest.approx(1 / 6)


def test_a_probe_learns_colours_that_an_untrained_clip_cannot_name(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, test=6, train=6)
    rows = evaluate("measures: [zero_shot, probe, raw_pixels]\ntasks: {colours: {groups: [size]}}")

    assert _value(rows, "colours", "probe", "top1") > _value(rows, "colours", "zero_shot", "top1") + 0.2
    groups = [
        _value(rows, "colours", "probe", "worst_group"), _value(rows, "colours", "probe", "top1"),
    ]  # fmt: skip
    assert groups[0] <= groups[1]
    assert {row["setting"] for row in rows if row["main"]} == {"zero_shot", "chance", "probe", "raw_pixels"}


def test_a_given_validation_split_chooses_the_strength(tmp_path: Path, evaluate: Any) -> None:
    folder = colours_set(tmp_path / "colours", NAMES, test=3, train=4)
    write_split(folder / "val", ({"png": picture(NAMES[one % 3], 900 + one), "cls": str(one % 3).encode()}
                                 for one in range(6)))  # fmt: skip
    rows = evaluate("measures: [probe]\ntasks: {colours: {}}")

    assert next(row["note"] for row in rows if row["metric"] == "C") == "validated on val"
    assert {path.name.split("-")[1] for path in (tmp_path / "out" / "features").iterdir()} == {"test", "train", "val"}


def test_few_shots_end_with_the_shots_that_match_zero_shot(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, test=4, train=5)
    rows = evaluate("measures: [zero_shot, few_shot]\nfew_shots: [1, 2, 16]\ntasks: {colours: {}}")

    curve = [_value(rows, "colours", f"few_shot_{k}", "top1") for k in (1, 2)]
    assert all(0 <= value <= 1 for value in curve)
    assert _value(rows, "colours", "few_shot_16", "top1") is None  # no class has so many
    matched = _value(rows, "colours", "few_shot", "shots_to_match")
    assert (matched is None) == (max(curve) < _value(rows, "colours", "zero_shot", "top1"))


def test_a_shift_has_zero_shot_and_the_references_probe(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, test=5, train=6)
    colours_set(tmp_path / "again", NAMES[::-1], test=5, train=0)  # the same images, classes in another order
    rows = evaluate("measures: [zero_shot, probe]\ntasks: {again: {shift_of: colours}, colours: {}}")

    assert _value(rows, "again", "zero_shot", "drop") == pytest.approx(
        _value(rows, "colours", "zero_shot", "top1") - _value(rows, "again", "zero_shot", "top1")
    )
    assert _value(rows, "again", "reference_probe", "top1") > 1 / 3


def test_effective_robustness_is_told_of_zero_shot_and_the_probe(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, test=4, train=4)
    colours_set(tmp_path / "dark", NAMES, test=4, train=0, background=20)
    models = [("a", 0.5, 0.3), ("b", 0.7, 0.5), ("c", 0.9, 0.8)]
    lines = [f"{name},colours,{there}\n{name},dark,{here}\n" for name, there, here in models]
    (tmp_path / "models.csv").write_text("model,task,value\n" + "".join(lines))
    rows = evaluate(
        "measures: [zero_shot, probe]\nreferences: models.csv\ntasks: {colours: {}, dark: {shift_of: colours}}"
    )

    for setting in ("zero_shot", "reference_probe"):
        assert -1 <= _value(rows, "dark", setting, "effective_robustness") <= 1


def test_images_that_were_trained_on_are_measured_apart(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, train=0)
    items = [f"colours,test/0.tar/s{row:07d}.png,u{row}\n" for row in range(6)]
    (tmp_path / "overlaps.csv").write_text("eval_set,eval_item,uid\n" + "".join(items))
    flags = "--overlaps", str(tmp_path / "overlaps.csv")
    rows = evaluate("measures: [zero_shot]\ntasks: {colours: {}}", *flags)

    seen, clean, everything = (
        next(row for row in rows if row["setting"] == f"overlap_{name}") for name in ("only", "clean", "all")
    )
    assert (seen["n"], clean["n"], everything["n"]) == (6, 18, 24)
    assert everything["value"] == pytest.approx((6 * seen["value"] + 18 * clean["value"]) / 24)
    assert seen["ci_level"] == 0.995


def test_what_nothing_can_be_fitted_on_is_said(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, train=0)
    rows = evaluate("measures: [zero_shot, raw_pixels]\ntasks: {colours: {}}")

    assert [row["note"] for row in rows if row["setting"] == "raw_pixels"] == ["no train split"]


def test_retrieval_counts_every_caption(tmp_path: Path, evaluate: Any) -> None:
    captions_set(tmp_path / "captions")
    rows = evaluate("tasks: {captions: {}}")

    counts = {row["metric"]: row["n"] for row in rows}
    assert (counts["image_to_text_recall@5"], counts["text_to_image_recall@5"]) == (12, 24)


def test_multilabel_is_measured_by_average_precision(tmp_path: Path, evaluate: Any) -> None:
    folder = colours_set(tmp_path / "voc", NAMES, test=0, train=0)
    (folder / "dataset_type.txt").write_text("multilabel\n")
    write_split(folder / "test", (
        {"png": picture(NAMES[one % 3], one), "npy": npy([one % 3 == 0, one % 3 == 1, one % 2])} for one in range(12)
    ))  # fmt: skip
    rows = evaluate("measures: [zero_shot]\ntasks: {voc: {}}")

    assert _value(rows, "voc", "chance", "map11") == pytest.approx((4 + 4 + 6) / 36)
    assert {row["metric"] for row in rows if row["setting"] == "zero_shot"} == {"map", "map11"}


def test_an_audit_tells_what_the_added_label_changes(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "people", NAMES, train=0)
    rows = evaluate("""measures: [zero_shot]
tasks:
  people:
    audit:
      by: [size]
      label_sets:
        paper: {person: [a red thing], crime: [thief, criminal]}
        with_child: {person: [a red thing], crime: [thief, criminal], child: [child]}
""")

    shares = [_value(rows, "people", "audit:paper", category, "all") for category in ("person", "crime")]
    assert sum(shares) == pytest.approx(1)
    change = _value(rows, "people", "audit:paper→with_child", "crime", "size=odd")
    assert change == pytest.approx(
        _value(rows, "people", "audit:with_child", "crime", "size=odd")
        - _value(rows, "people", "audit:paper", "crime", "size=odd")
    )
    assert change <= 0


def test_aliases_and_one_prompt_are_measured_beside_the_ensemble(tmp_path: Path, evaluate: Any) -> None:
    colours_set(tmp_path / "colours", NAMES, train=0)
    rows = evaluate("measures: [zero_shot]\ntasks: {colours: {aliases: {red: [scarlet, crimson]}}}")

    gain = _value(rows, "colours", "ensemble_gain", "top1")
    single = _value(rows, "colours", "zero_shot_single", "top1")
    assert gain == pytest.approx(_value(rows, "colours", "zero_shot", "top1") - single)
    assert 0 <= _value(rows, "colours", "zero_shot_no_aliases", "top1") <= 1


def test_a_second_run_reads_kept_features_and_is_set_beside_the_first(tmp_path: Path, evaluate: Any) -> None:
    folder = colours_set(tmp_path / "colours", NAMES, train=0)
    suite = "measures: [zero_shot]\ntasks: {colours: {}}"
    first = evaluate(suite)
    (kept,) = (tmp_path / "out" / "features").glob("*.npz")
    made = kept.stat().st_mtime_ns
    second = evaluate(suite, "--compare", str(tmp_path / "out"))

    assert kept.stat().st_mtime_ns == made
    assert [row["value"] for row in first] == [row["value"] for row in second]
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("<figure>") == 6
    assert "<ol start=0>" in page
    assert pyarrow.csv.read_csv(tmp_path / "out" / "results.csv").num_rows == len(second)
    assert folder.is_dir()


def test_clip_classifies_paths_bytes_images_and_arrays_alike(tmp_path: Path, model: Path) -> None:
    from PIL import Image

    data = picture("red", 1)
    path = tmp_path / "red.png"
    path.write_bytes(data)
    with Image.open(path) as opened:
        image = opened.copy()
    loaded = clip.load(model)
    chances = loaded.classify([path, data, image, np.asarray(image)], ["red", "blue"])

    assert chances.sum(axis=1) == pytest.approx(np.ones(4))
    assert np.ptp(chances, axis=0).max() < 1e-5
    assert np.linalg.norm(loaded.encode_image([path])) == pytest.approx(1)
    assert np.linalg.norm(loaded.encode_text(["red"])) == pytest.approx(1)
    cosines = loaded.encode_image([path]) @ loaded.encode_text(["a photo of a red.", "a photo of a blue."]).T
    odds = np.exp(loaded.encoder.logit_scale * (cosines[0, 0] - cosines[0, 1]))
    assert chances[0, 0] / chances[0, 1] == pytest.approx(odds, rel=1e-3)


def test_classify_prints_five_labels_of_each_image(
    tmp_path: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "red.png"
    path.write_bytes(picture("red", 1))

    assert classify_job.main(["--model", str(model), "--labels", *COLOURS, str(path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == str(path)
    chances = [float(line.split("%")[0]) for line in lines[1:]]
    assert len(chances) == 5
    assert chances == sorted(chances, reverse=True)


def test_a_clusters_workers_measure_what_one_process_does(
    tmp_path: Path, evaluate: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    from pipeline.cluster import shutdown

    colours_set(tmp_path / "colours", NAMES, test=4, train=0)
    colours_set(tmp_path / "dark", NAMES, test=4, train=0, background=20)
    captions_set(tmp_path / "captions", 6)
    suite = "measures: [zero_shot]\ntasks: {dark: {shift_of: colours}, captions: {}, colours: {}}"
    here = evaluate(suite)
    monkeypatch.setenv("RAY_ADDRESS", "local")
    there = evaluate(suite, out="there")
    shutdown()

    assert not ray.is_initialized()
    assert [row | {"run": None} for row in there] == [row | {"run": None} for row in here]


def test_what_jobs_train_wrote_is_measured_and_its_ledger_says_which_overlaps_count(tmp_path: Path) -> None:
    """Of 20 samples, one batch of 16 is seen; overlaps with what it did not see are no overlaps."""
    from pipeline.evaluate.overlap import read_overlaps
    from pipeline.train.ledger import seen
    from pipeline.train.loop import train
    from tests.pool_fixture import uid_of
    from tests.train_fixture import job_of

    train(job_of(tmp_path, rows=20, samples=16, warmup=0, checkpoint_steps=1))
    checkpoint = tmp_path / "out" / "latest"
    trained = set(seen(checkpoint, map(uid_of, range(20))))
    lines = [f"colours,test/0.tar/s{row:07d}.png,{uid_of(row)}\n" for row in range(20)]
    (tmp_path / "overlaps.csv").write_text("eval_set,eval_item,uid\n" + "".join(lines))
    colours_set(tmp_path / "colours", NAMES, train=0)
    (tmp_path / "suite.yaml").write_text("data: .\nmeasures: [zero_shot]\ntasks: {colours: {}}")
    argv = ["--model", str(checkpoint), "--suite", str(tmp_path / "suite.yaml"), "--out", str(tmp_path / "results"),
            "--overlaps", str(tmp_path / "overlaps.csv")]  # fmt: skip

    assert len(trained) == 16
    found = read_overlaps(str(tmp_path / "overlaps.csv"), checkpoint)["colours"]
    assert found == {f"s{row:07d}" for row in range(20) if uid_of(row) in trained}
    assert evaluate_job.main(argv) == 0
    rows = pq.read_table(tmp_path / "results" / "results.parquet").to_pylist()
    assert next(row["n"] for row in rows if row["setting"] == "overlap_only") == 16
