"""The heads that a recipe names, and the encoder that each belongs to: no torch, no store."""

import functools
import hashlib
from dataclasses import dataclass
from pathlib import Path

import duckdb

from pipeline.encoders.identity import file_sha256, identify
from pipeline.errors import InputError
from pipeline.heads.head import NAME, Head, Spec, read_spec, read_tensors
from pipeline.heads.labels import Labels, read_labels
from pipeline.storage import holder
from schemas.recipe import Embed, Encoder, Recipe, digest
from schemas.tables import OUTCOMES, PAIRS, SCORES


@dataclass(frozen=True)
class Named:
    """A head as a recipe names it."""

    key: str
    path: str
    what: Spec | Labels
    digest: str
    """Of all that shapes its scores: the spec and its weights, or labels and templates."""

    @property
    def columns(self) -> list[str]:
        return self.what.columns(self.key)

    @property
    def over_pixels(self) -> bool:
        return isinstance(self.what, Spec) and self.what.backbone is not None


def heads_of(recipe: Recipe, encoder: Encoder) -> dict[str, str]:
    """column → digest of the head that gives it, of the heads that belong to this encoder. Raises InputError."""
    return {column: head.digest for head in named_heads(recipe, encoder) for column in head.columns}


def head_columns(embed: Embed) -> list[str]:
    """Every column that the recipe's heads give, of whatever encoder, sorted. Raises InputError."""
    return sorted(column for head in _read(embed) for column in head.columns)


def named_heads(recipe: Recipe, encoder: Encoder) -> list[Named]:
    """The heads that belong to this encoder. Raises InputError for a head that belongs to none of the recipe's."""
    owners = {head.key: _owner(recipe.embed, head) for head in _read(recipe.embed)}
    return [head for head in _read(recipe.embed) if owners[head.key] == encoder.name]


def content(path: str, place: str) -> bytes:
    """A file's bytes, wherever it lies. Raises InputError."""
    try:
        if "://" not in path:
            return Path(path).read_bytes()
        store, name = holder(path)
        return store.read(name)
    except OSError as error:
        raise InputError(f"{place}: {path} cannot be read: {error.strerror or error}") from None


def read_head(named: Named) -> Head:
    """A head of two files with its weights. Raises InputError."""
    assert isinstance(named.what, Spec)
    place, path = f"recipe embed.heads.{named.key}", weights_of(named.path)
    return read_tensors(named.what, content(path, place), f"{place}: {path}")


def weights_of(path: str) -> str:
    """Path of the safetensors beside a head's .json."""
    return path.removesuffix(".json") + ".safetensors"


def _read(embed: Embed) -> list[Named]:
    named = [_named(key, path) for key, path in embed.heads.items()]
    given: dict[str, str] = {}
    taken = {*OUTCOMES.names, *PAIRS.names, *SCORES.names, "pixels", "text_count", "pdq", "pdq_quality"}
    for head in named:
        for column in head.columns:
            if column in taken or column.startswith("clip_score") or column in given:
                other = f"head {given[column]} gives" if column in given else "there is"
                raise InputError(f"recipe embed.heads.{head.key}: {other} a column {column} already; name it otherwise")
            if column in _sql_keywords():
                raise InputError(f"recipe embed.heads.{head.key}: {column} is a word of SQL; name it otherwise")
            given[column] = head.key
    return named


@functools.cache
def _sql_keywords() -> frozenset[str]:
    """Words that no column may be named, or else every query has to quote it."""
    query = "SELECT keyword_name FROM duckdb_keywords() WHERE keyword_category = 'reserved'"
    return frozenset(name for (name,) in duckdb.sql(query).fetchall())


def _named(key: str, path: str) -> Named:
    place = f"recipe embed.heads.{key}"
    if not NAME.fullmatch(key):
        raise InputError(f"{place}: a column is named with lower-case letters, digits and underscores")
    if path.endswith((".yaml", ".yml")):
        labels = read_labels(content(path, place), f"{place}: {path}")
        return Named(key, path, labels, digest({"zero_shot": labels.model_dump(exclude={"encoder"})}))
    if not path.endswith(".json"):
        raise InputError(
            f"{place}: {path} is neither a head's .json nor a .yaml of labels; python -m jobs.heads converts others"
        )
    spec = read_spec(content(path, place), f"{place}: {path}")
    if key != spec.column and not key.startswith(f"{spec.column}_"):
        raise InputError(f"{place}: {path} gives {spec.column}; name it {spec.column} or {spec.column}_<more>")
    weights = _sha256(weights_of(path), place)
    return Named(key, path, spec, digest({"head": spec.model_dump(exclude={"source"}), "weights": weights}))


def _sha256(path: str, place: str) -> str:
    """Of a file on a disk known by its size and time once read."""
    if "://" in path or not Path(path).is_file():
        return hashlib.sha256(content(path, place)).hexdigest()
    return file_sha256(Path(path))


def _owner(embed: Embed, head: Named) -> str:
    """Name of the encoder that a head belongs to: of several with the same weights the first listed, as for a head over
    pixels, whose scores lie beside that encoder's."""
    place = f"recipe embed.heads.{head.key}"
    names = [encoder.name for encoder in embed.encoders]
    if not names:
        raise InputError(f"{place}: there is no encoder in embed.encoders whose vectors it could read")
    if head.over_pixels:
        return names[0]
    if isinstance(head.what, Labels):
        name = head.what.encoder or (names[0] if len(names) == 1 else None)
        if name not in names:
            said = f"names encoder {name}" if name else "names no encoder"
            raise InputError(f"{place}: {head.path} {said}; give encoder: one of {', '.join(names)}")
        return name
    wanted = head.what.encoder_sha256
    there = {encoder.name: identify(encoder).weights_sha256 for encoder in embed.encoders}
    for name, found in there.items():
        if found == wanted:
            return name
    known = ", ".join(f"{name}: {found}" for name, found in there.items())
    raise InputError(
        f"{place}: {head.path} belongs to an encoder of weights {wanted}, and the recipe's are {known};"
        f" its scores of other vectors would mean nothing"
    )
