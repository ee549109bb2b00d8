"""Everything about a request that can be refused in its first second, before anything is made."""

import hashlib
import re
import ssl
from collections.abc import Callable, Collection
from pathlib import Path

import pyarrow as pa

from pipeline.adopt.names import HEADS
from pipeline.download.addresses import AddressPolicy, read_hosts
from pipeline.download.blocklist import Blocklist
from pipeline.errors import InputError
from pipeline.gates import check_gates
from pipeline.ingest.prefilter import Prefilter
from pipeline.metadata import COSINE, TEXT_COUNT, schema_of
from pipeline.rules import Rules
from pipeline.select.decide import RESERVED
from pipeline.storage import holder
from pipeline.units import measure
from schemas.recipe import Recipe, digest

PDQ_RADIUS = 31
LATER = (
    "embed.encoders", "embed.heads", "embed.eligible", "semantic.encoder", "select.image_based", "select.top",
    "select.balance", "select.weight", "shard.mode",
)  # fmt: skip
"""Keys of what does not exist yet."""


def check_recipe(recipe: Recipe) -> None:
    """Raises InputError for a recipe that parses but cannot be run."""
    for key in LATER:
        section, name = key.split(".")
        given = getattr(recipe, section)
        if getattr(given, name) != getattr(type(given)(), name):
            raise InputError(f"recipe {key}: nothing reads it yet; leave it out")
    check_gates(recipe)
    kept = recipe.ingest.keep_columns
    if "*" not in kept:  # with all columns kept, their names are known once the input is read
        Prefilter(recipe.ingest.prefilter, kept)
    _check_download(recipe)
    _check_curation(recipe)


def check_rules(recipe: Recipe, kept: Collection[str], scores: Collection[str]) -> None:
    """Raises InputError for a rule of dedupe or select that cannot be run.

    `kept` are the kept input columns, `scores` those that came with adopted batches.
    """
    schema = schema_of(kept, scores)
    Rules(recipe.dedupe.eligible, schema, "dedupe.eligible")
    Rules(recipe.select.rules, schema.append(TEXT_COUNT), "select.rules")
    numbers = [field.name for field in schema if pa.types.is_integer(field.type) or pa.types.is_floating(field.type)]
    for name in recipe.dedupe.rank:
        if name != "uid" and name not in numbers:
            known = ", ".join(numbers)
            raise InputError(f"recipe dedupe.rank: {name} is not a number of each row; there are uid, {known}")


def named_contents(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Digests of the files that settings name and results depend on: {stage: {key: digest}}. Raises InputError."""
    contents: dict[str, dict[str, str]] = {"dedupe": {}, "select": {}}
    for name, path in recipe.dedupe.against.items():
        contents["dedupe"][f"against.{name}"] = _content(path, f"recipe dedupe.against.{name}")
    if recipe.select.uids:
        contents["select"]["uids"] = _content(recipe.select.uids, "recipe select.uids")
    return contents


def _content(path: str, place: str) -> str:
    """sha256 of a file's bytes; of a folder's the names and sizes of its files, wherever it lies."""
    try:
        if "://" not in path and Path(path).is_dir():
            files = sorted(file for file in Path(path).rglob("*") if file.is_file())
            return digest([[str(file.relative_to(path)), file.stat().st_size] for file in files])
        if "://" not in path:
            return measure(Path(path))[1]
        store, name = holder(path)
        return hashlib.sha256(store.read(name)).hexdigest()
    except OSError as error:
        raise InputError(f"{place}: {path} cannot be read: {error.strerror or error}") from None


def _check_curation(recipe: Recipe) -> None:
    """What can be said of dedupe and select without a ROOT: src_* columns and adopted scores are taken to be there."""
    dedupe, select = recipe.dedupe, recipe.select
    rules = [*dedupe.eligible.values(), *select.rules.values()]
    kept = {name for rule in rules for name in re.findall(r"\bsrc_(\w+)", rule)}
    scores = {name for rule in rules for name in re.findall(rf"\b(?:{COSINE}\w+|{'|'.join(HEADS.values())})\b", rule)}
    check_rules(recipe, sorted(kept), sorted(scores))
    if reserved := [name for name in select.rules if name.lower() in RESERVED]:
        raise InputError(f"recipe select.rules.{reserved[0]}: the name says why else a row is dropped; choose another")
    if isinstance(select.decontaminate, list):
        for name in select.decontaminate:
            if name not in dedupe.against:
                known = ", ".join(dedupe.against) or "none"
                raise InputError(f"recipe select.decontaminate: {name} is no set of dedupe.against; there are {known}")
    level = dedupe.levels.get("pdq", False)
    if level is not False and level is not True and not 0 <= level <= PDQ_RADIUS:
        raise InputError(f"recipe dedupe.levels.pdq is {level}: give 0 to {PDQ_RADIUS}, the distance PDQ is made for")


def _check_download(recipe: Recipe) -> None:
    download, kept = recipe.download, recipe.ingest.keep_columns
    for name, column in (("bbox_col", download.bbox_col), ("verify_hash", (download.verify_hash or (None,))[0])):
        if column and column not in kept and "*" not in kept:
            raise InputError(f"recipe download.{name}: column {column} is not kept; add it to ingest.keep_columns")
    Blocklist(download.blocklists)
    opened: list[tuple[str, Callable[[], object]]] = [
        ("allow_addresses", lambda: AddressPolicy(download.allow_addresses)),
        ("ca_file", lambda: download.ca_file and ssl.create_default_context(cafile=download.ca_file)),
        ("hosts_file", lambda: download.hosts_file and read_hosts(Path(download.hosts_file))),
    ]
    for name, use in opened:
        try:
            use()
        except (OSError, ValueError) as error:
            raise InputError(f"recipe download.{name} is {getattr(download, name)!r}: {error}") from None
