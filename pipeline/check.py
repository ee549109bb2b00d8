"""Everything about a request that can be refused in its first second, before anything is made."""

import re
import ssl
from collections.abc import Callable, Collection
from pathlib import Path

from pipeline.adopt.names import HEADS, VECTORS_OF
from pipeline.download.addresses import AddressPolicy, read_hosts
from pipeline.download.blocklist import Blocklist
from pipeline.errors import InputError
from pipeline.gates import check_gates
from pipeline.ingest.prefilter import Prefilter
from pipeline.metadata import CLIP_SCORE, COSINE, TEXT_COUNT, schema_of, score_columns
from pipeline.rules import Rules
from pipeline.select.decide import RESERVED
from pipeline.select.entries import ngrams_wanted, read_entries
from pipeline.select.top import number_columns
from pipeline.select.weight import Weight
from pipeline.storage import content_tag
from schemas.recipe import Recipe

PDQ_RADIUS = 31


def check_recipe(recipe: Recipe) -> None:
    """Raises InputError for a recipe that parses but cannot be run."""
    shard = recipe.shard
    if shard.mode == "index" and shard.output_format != "webdataset":
        raise InputError(f"recipe shard.output_format: an index has no {shard.output_format}; leave it out")
    check_gates(recipe)
    kept = recipe.ingest.keep_columns
    if "*" not in kept:  # with all columns kept, their names are known once the input is read
        Prefilter(recipe.ingest.prefilter, kept)
    _check_download(recipe)
    _check_encoders(recipe)
    _check_curation(recipe)


def check_rules(recipe: Recipe, kept: Collection[str], scores: Collection[str]) -> None:
    """Raises InputError for a rule of dedupe or select that cannot be run.

    `kept` are the kept input columns, `scores` those that came with adopted batches.
    """
    schema = schema_of(kept, scores)
    Rules(recipe.dedupe.eligible, schema, "dedupe.eligible")
    Rules(recipe.embed.eligible, schema, "embed.eligible")
    numbers = number_columns(schema)
    for name in recipe.dedupe.rank:
        if name != "uid" and name not in numbers:
            known = ", ".join(numbers)
            raise InputError(f"recipe dedupe.rank: {name} is not a number of each row; there are uid, {known}")
    whole = schema_of(kept, dict.fromkeys([*scores, *score_columns(recipe.embed)])).append(TEXT_COUNT)
    Rules(recipe.select.rules, whole, "select.rules")
    if recipe.select.weight is not None:
        Weight(recipe.select.weight, whole)
    top = recipe.select.top
    if top and top.column not in number_columns(whole):
        known = ", ".join(number_columns(whole))
        raise InputError(f"recipe select.top.column: {top.column} is not a number of each row; there are {known}")


def named_contents(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Digests of the files and folders that settings name and results depend on: {stage: {key: digest}}.

    What lies on a disk is read whole. Raises InputError.
    """
    contents: dict[str, dict[str, str]] = {"dedupe": {}, "select": {}}
    for name, path in recipe.dedupe.against.items():
        contents["dedupe"][f"against.{name}"] = _content(path, f"recipe dedupe.against.{name}")
    for encoder in recipe.embed.encoders:
        # Only recipes with encoders need what these import.
        from pipeline.encoders.identity import identify
        from pipeline.scores.stage import heads_of

        contents[f"embed/{encoder.name}"] = {"weights": identify(encoder).digest}
        contents[f"scores/{encoder.name}"] = heads_of(recipe, encoder)
    select = recipe.select
    files = {
        "uids": select.uids,
        "words": select.words,
        "image_based.reference": select.image_based and select.image_based.reference,
        "balance.entries": select.balance and ngrams_wanted(select.balance.entries) is None and select.balance.entries,
    }
    for name, named in files.items():
        if named:
            contents["select"][name] = _content(named, f"recipe select.{name}")
    return contents


def _content(path: str, place: str) -> str:
    try:
        return content_tag(path)
    except OSError as error:
        raise InputError(f"{place}: {path} cannot be read: {error.strerror or error}") from None


def check_scored(recipe: Recipe, scores: Collection[str]) -> None:
    """Raises InputError where `select` asks for the score of rows that will have none: it would keep nothing.

    `scores`: as for check_rules.
    """
    if scores or recipe.embed.encoders:
        return
    select = recipe.select
    asked = {f"select.rules.{name}": rule for name, rule in select.rules.items()}
    asked |= {"select.top.column": select.top.column if select.top else "", "select.weight": select.weight or ""}
    for key, text in asked.items():
        if re.search(rf"\b{CLIP_SCORE.name}\b", text):
            raise InputError(f"recipe {key}: rows have no clip_score without an encoder; give embed.encoders")


def check_adopted(recipe: Recipe, kept: Collection[str], scores: Collection[str]) -> None:
    """Raises InputError where an encoder has the name of one whose scores came with an adopted batch, or where rows
    are to be chosen by a score before they have any.

    `kept` and `scores`: as for check_rules.
    """
    early = {"dedupe.eligible": recipe.dedupe.eligible, "embed.eligible": recipe.embed.eligible}
    for key, rules in early.items():
        if not scores and CLIP_SCORE.name in Rules(rules, schema_of(kept), key).columns:
            raise InputError(f"recipe {key}: rows have no clip_score before they are embedded; make it a select.rules")
    for encoder in recipe.embed.encoders:
        if f"{COSINE}{encoder.name}" in scores:
            raise InputError(
                f"recipe embed.encoders: {encoder.name} is the name of scores that came with an adopted batch;"
                " choose another"
            )


def _check_encoders(recipe: Recipe) -> None:
    names = [encoder.name for encoder in recipe.embed.encoders]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"recipe embed.encoders: {twice[0]} is the name of two")
    if (gpus := recipe.embed.num_gpus) > 1 and gpus != int(gpus):
        raise InputError(f"recipe embed.num_gpus is {gpus}: above 1 give a whole number; a share of one GPU is below 1")
    if recipe.embed.heads and not names:
        raise InputError("recipe embed.heads: heads need an encoder; give embed.encoders")
    asked = {"semantic.encoder": recipe.semantic.encoder}
    if recipe.select.image_based:
        asked["select.image_based.encoder"] = recipe.select.image_based.encoder
    for key, name in asked.items():
        if name is not None and name not in (*names, *VECTORS_OF):
            raise InputError(
                f"recipe {key}: {name} is none of embed.encoders ({', '.join(names) or 'none'}), nor of those whose"
                f" vectors come with downloads ({', '.join(VECTORS_OF)})"
            )
    if recipe.semantic.overlap_eps is not None and not (recipe.semantic.encoder and recipe.dedupe.against):
        raise InputError("recipe semantic.overlap_eps: needs the sets of dedupe.against, and semantic.encoder")


def _check_curation(recipe: Recipe) -> None:
    """What can be said of dedupe and select without a ROOT: src_* columns and adopted scores are taken to be there."""
    dedupe, select = recipe.dedupe, recipe.select
    rules = [
        *dedupe.eligible.values(),
        *select.rules.values(),
        select.weight or "",
        select.top.column if select.top else "",
    ]
    kept = {name for rule in rules for name in re.findall(r"\bsrc_(\w+)", rule)}
    scores = {name for rule in rules for name in re.findall(rf"\b(?:{COSINE}\w+|{'|'.join(HEADS.values())})\b", rule)}
    check_rules(recipe, sorted(kept), sorted(scores))
    if reserved := [name for name in select.rules if name.lower() in RESERVED]:
        raise InputError(f"recipe select.rules.{reserved[0]}: the name says why else a row is dropped; choose another")
    if select.words:
        read_entries(select.words, "select.words")
    if select.balance and ngrams_wanted(select.balance.entries) is None:
        read_entries(select.balance.entries)
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
