"""What is wrong with a model, a suite or a dataset is one clear line, and exit code 2."""

import shutil
from pathlib import Path

import pytest

from jobs import classify as classify_job
from jobs import evaluate as evaluate_job
from tests.evaluation_sets import captions_set, colours_set, write_split
from tests.tiny_clip import tiny_clip

pytest.importorskip("torch")
NAMES = ["red", "green", "blue"]
ZERO_SHOT = "measures: [zero_shot]\ntasks: {colours: {}}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_clip(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def colours(tmp_path: Path) -> Path:
    return colours_set(tmp_path / "colours", NAMES, test=3, train=0)


def _refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, suite: str = ZERO_SHOT, *flags: str
) -> str:
    (tmp_path / "s.yaml").write_text("data: .\n" + suite)
    argv = ["--model", str(model), "--suite", str(tmp_path / "s.yaml"), "--out", str(tmp_path / "out"), *flags]
    assert evaluate_job.main(argv) == 2
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("pairmill evaluate: "))
    assert not (tmp_path / "out" / "results.parquet").exists()
    return line


def test_a_missing_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    line = _refused(capsys, tmp_path, model)

    assert f"dataset colours: there is no folder {tmp_path / 'colours'}" in line


def test_classes_without_templates(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    (colours / "zeroshot_classification_templates.txt").unlink()

    assert "dataset colours: its classes have no templates" in _refused(capsys, tmp_path, model)


def test_a_template_without_a_place_for_the_class(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    (colours / "zeroshot_classification_templates.txt").write_text("a photo\n")

    assert "template 'a photo' has neither {} nor {c}" in _refused(capsys, tmp_path, model)


def test_missing_classes(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path) -> None:
    (colours / "classnames.txt").unlink()

    assert "classnames.txt is missing or empty" in _refused(capsys, tmp_path, model)


def test_fewer_classes_than_labels(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    (colours / "classnames.txt").write_text("red\ngreen\n")

    line = _refused(capsys, tmp_path, model)
    assert "0.tar: s0000002.cls says class '2'" in line
    assert "has 2 classes" in line


@pytest.mark.parametrize(("count", "said"), [("2", "1.tar is missing"), ("x", "is no number"), ("0", "0.tar is there")])
def test_wrong_counts(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path, count: str, said: str
) -> None:
    (colours / "test" / "nshards.txt").write_text(count)

    assert said in _refused(capsys, tmp_path, model)


def test_an_image_that_does_not_decode(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    shutil.rmtree(colours / "test")
    write_split(colours / "test", [{"png": b"no image", "cls": b"0"}])

    assert "the image of s0000000 cannot be decoded" in _refused(capsys, tmp_path, model)


def test_a_tar_that_is_cut_short(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    tar = colours / "test" / "0.tar"
    tar.write_bytes(tar.read_bytes()[:700])

    assert f"{tar} cannot be read to its end" in _refused(capsys, tmp_path, model)


def test_an_image_without_captions(capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path) -> None:
    folder = captions_set(tmp_path / "captions", 0)
    shutil.rmtree(folder / "test")
    write_split(folder / "test", [{"png": b"", "txt": b""}])

    assert "s0000000.txt is empty" in _refused(capsys, tmp_path, model, "tasks: {captions: {}}")


def test_a_checkpoint_that_does_not_load(capsys: pytest.CaptureFixture[str], tmp_path: Path, colours: Path) -> None:
    broken = tiny_clip(tmp_path / "broken")
    (broken / "open_clip_model.safetensors").write_bytes(b"x" * 100)

    assert "open_clip_model.safetensors cannot be read" in _refused(capsys, tmp_path, broken)


def test_a_model_that_is_not_there(capsys: pytest.CaptureFixture[str], tmp_path: Path, colours: Path) -> None:
    assert "/nowhere is no file and no folder" in _refused(capsys, tmp_path, Path("/nowhere"))


@pytest.mark.parametrize(
    ("suite", "said"),
    [
        ("tasks: {colours: {mian: top1}}", "tasks.colours.mian is unknown; did you mean main?"),
        ("tasks: {colours: {main: map}}", "main map is not for classification"),
        ("tasks: {colours: {shift_of: imagenet}}", "a shift of imagenet, which the suite has not"),
        ("tasks: {colours: {groups: [age]}}", "sample 0 has no age; its metadata has size"),
        ("tasks: {colours: {aliases: {pink: [rose]}}}", "aliases are given for 'pink', which is none of its classes"),
        ("tasks: [", "cannot be read"),
    ],
)
def test_a_suite_that_asks_for_what_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path, suite: str, said: str
) -> None:
    assert said in _refused(capsys, tmp_path, model, suite)


def test_a_run_to_compare_with_that_is_none(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path, colours: Path
) -> None:
    line = _refused(capsys, tmp_path, model, ZERO_SHOT, "--compare", str(tmp_path / "other"))

    assert f"--compare {tmp_path / 'other'}" in line


def test_classify_names_the_image_it_cannot_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, model: Path
) -> None:
    (tmp_path / "no.jpg").write_bytes(b"no image")

    assert classify_job.main(["--model", str(model), "--labels", "a", "b", "--", str(tmp_path / "no.jpg")]) == 2
    assert f"image {tmp_path / 'no.jpg'} cannot be decoded" in capsys.readouterr().err
