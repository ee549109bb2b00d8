"""Every column of pairs that a text has by itself."""

import pyarrow as pa

from pipeline.errors import InputError
from pipeline.ingest.language import LanguageModel, identity
from pipeline.ingest.text import DETECTORS, repetition, text_statistics
from schemas.recipe import Ingest
from schemas.records import Batch
from schemas.tables import PAIRS


class TextDescriber:
    """Raises InputError for a language model that is not installed."""

    def __init__(self, settings: Ingest) -> None:
        named = settings.lang_model != "none"
        self._language = LanguageModel(settings.lang_model, settings.lang_min_score) if named else None

    def __call__(self, text: pa.Array) -> dict[str, pa.Array]:
        """n_chars, n_words, lang, lang_score, repetition, repeated_trigrams and the detectors of texts (no nulls)."""
        texts = text.to_pylist()
        columns = dict(zip(("n_chars", "n_words"), text_statistics(text), strict=True))
        if self._language is not None:
            columns["lang"], columns["lang_score"] = self._language(texts)
        else:
            columns |= {name: pa.nulls(len(text), PAIRS.field(name).type) for name in ("lang", "lang_score")}
        columns["repetition"], columns["repeated_trigrams"] = repetition(texts)
        return columns | {name: detect(text) for name, detect in DETECTORS.items()}


def describer_of(batch: Batch) -> TextDescriber:
    """That of a batch's settings. Raises InputError where its language model is not the one it was made with."""
    settings = Ingest.model_validate(batch.settings)
    here = identity(settings.lang_model)
    if here != batch.lang_model:
        raise InputError(
            f"batch {batch.batch}: made with {_said(batch.lang_model)}, but here is {_said(here)}; a batch's rows are "
            "judged by one model, so install that version for it"
        )
    return TextDescriber(settings)


def _said(model: dict[str, str]) -> str:
    return f"{model['package']} {model['version']} (sha256 {model['sha256'][:12]}…)" if model else "no language model"
