"""The recipe: what a run should make, as frozen pydantic models.

Unknown keys are refused, naming the nearest known one. Each field says whether it shapes results. Shaping fields of a
stage (and, for set-level stages, of every stage before it) make up the stage's fingerprint; the others may change
without making anything again.
"""

import difflib
import hashlib
import json
import re
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

FORMAT_VERSION = 1
"""Version of what stages write; part of every fingerprint."""


def shapes(default: Any, description: str, **limits: Any) -> Any:
    """A field whose value shapes results: it is part of the stage's fingerprint."""
    return Field(default, description=description, json_schema_extra={"shapes_results": True}, **limits)


def tunes(default: Any, description: str, **limits: Any) -> Any:
    """A field that changes how a stage runs or what it may reach, not what it makes of what it gets."""
    return Field(default, description=description, json_schema_extra={"shapes_results": False}, **limits)


def _listed(value: object) -> object:
    return [value] if isinstance(value, str) else value


CONSENT_DEFAULTS = {
    "robots": True, "x_robots_tag": True, "tdm_reservation": True, "content_usage": True, "tdmrep": False,
    "iptc_plus": True, "c2pa": True,
}  # fmt: skip
"""Consent signals, and which are honoured unless the recipe says otherwise; what costs a request a host is off."""


def _with_defaults(value: object) -> object:
    return {**CONSENT_DEFAULTS, **value} if isinstance(value, dict) else value


def _in_one_order(value: object) -> object:
    listed = _listed(value)
    return sorted({"sha256", *listed}, reverse=True) if isinstance(listed, list) else listed


Strings = Annotated[list[str], BeforeValidator(_listed)]
Interpolation = Literal["nearest", "linear", "cubic", "area", "lanczos", "lanczos4"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


PRESETS: dict[str, dict[str, str | list[str]]] = {
    "datacomp": {"url_col": "url", "caption_col": "text"},
    "laion400m": {"url_col": "URL", "caption_col": "TEXT"},
    "laion2b": {"url_col": "URL", "caption_col": "TEXT"},
    "coyo": {"url_col": "url", "caption_col": "text"},
    "cc3m": {"url_col": "url", "caption_col": "caption", "columns": ["caption", "url"]},
    "cc12m": {"url_col": "url", "caption_col": "caption", "columns": ["url", "caption"]},
}
"""Column names as the sets were published: Parquet with a header, but CC3M's and CC12M's TSV without one."""


class Ingest(Section):
    """Settings of a batch: fixed when the batch is made; a later change applies to later batches."""

    preset: Literal["datacomp", "laion400m", "laion2b", "coyo", "cc3m", "cc12m"] | None = shapes(
        None, "column names of a published set: url_col, caption_col and columns where they are not given"
    )
    url_col: str = shapes("url", "column with the image's URL")
    caption_col: str = shapes("caption", "column with the alt text; with none, the text is empty")
    keep_columns: Strings = shapes(
        [], "input columns kept as src_<name>, as text; ['*'] keeps all (save_additional_columns)"
    )
    columns: Strings = shapes(
        [], "names of the columns of headerless csv or tsv files; empty: the first record is a header"
    )
    dedupe: Literal["url_text", "url"] = shapes(
        "url_text", "pairs are duplicates by fetch_url and text, or by fetch_url alone"
    )
    prefilter: dict[str, str] = shapes(
        {},
        "name → SQL predicate over url, text, text's columns of pairs from n_chars on, src_*; a row must pass all",
    )
    require_text: bool = shapes(True, "rows without text are rejected as missing_text")
    normalise: bool = shapes(False, "caption is text in Unicode NFC with runs of white space as one space")
    redact: bool = shapes(False, "caption has e-mail addresses and phone numbers replaced by [email] and [phone]")
    lang_model: Literal["none", "fasttext-176", "lingua", "cld3"] = shapes(
        "fasttext-176",
        "language model that fills lang and lang_score; extras: lingua, slower and better on short text, and cld3",
    )
    lang_min_score: float = shapes(0.2, "lang is und where the model's score is below this", ge=0, le=1)

    @model_validator(mode="before")
    @classmethod
    def _preset(cls, given: Any) -> Any:
        preset = given.get("preset") if isinstance(given, dict) else None
        return {**PRESETS.get(preset, {}), **given} if isinstance(preset, str) else given


class PerHost(Section):
    connections: int = tunes(4, "connections to one host at a time", ge=1, le=256)
    per_second: float = tunes(20.0, "requests started a second to one host; 0: no limit", ge=0)


class Download(Section):
    image_size: int = shapes(256, "side of the image in pixels", ge=1, le=8192)
    resize_mode: Literal["no", "keep_ratio", "keep_ratio_largest", "center_crop", "border"] = shapes(
        "keep_ratio", "as in img2dataset: keep_ratio makes the shorter side image_size"
    )
    resize_only_if_bigger: bool = shapes(False, "never enlarge")
    upscale_interpolation: Interpolation = shapes("lanczos", "used when enlarging")
    downscale_interpolation: Interpolation = shapes("area", "used when reducing")
    encode_format: Literal["jpg", "png", "webp"] = shapes("jpg", "format of pool images")
    encode_quality: int = shapes(95, "JPEG and WebP: 1 to 100; PNG: compression 0 to 9", ge=0, le=100)
    skip_reencode: bool = shapes(False, "keep the fetched bytes when nothing was resized")
    disable_all_reencoding: bool = shapes(False, "keep the fetched bytes always")
    min_image_size: int = shapes(0, "smaller shorter sides are too_small", ge=0)
    max_image_area: float = shapes(float("inf"), "more pixels than this are too_many_pixels", gt=0)
    max_aspect_ratio: float = shapes(float("inf"), "longer to shorter side; above it: aspect_ratio", gt=0)
    max_pixels: int = tunes(67_108_864, "decoder guard: more pixels in a frame are too_many_pixels", ge=1)
    max_frames: int = tunes(1_000, "decoder guard: more frames are too_many_pixels", ge=1)
    bbox_col: str | None = shapes(None, "kept column with boxes to blur: [[left, top, right, bottom], …] in 0…1")
    background: tuple[int, int, int] = shapes((255, 255, 255), "RGB that transparent pixels are laid on")
    pixels: Literal["fast", "img2dataset"] = shapes(
        "fast", "fast: scaled decode; img2dataset: that library's own Resizer, pixel-identical to it"
    )
    exif: Literal["none", "safe", "all"] = shapes("safe", "EXIF kept: safe is orientation, size, make, model")
    compute_hash: Annotated[list[Literal["sha256", "sha1", "md5"]], BeforeValidator(_in_one_order)] = shapes(
        ["sha256", "sha1", "md5"], "hashes of the fetched bytes; sha256 is always there"
    )
    verify_hash: tuple[str, Literal["sha256", "sha1", "md5"]] | None = shapes(
        None, "kept column with a hash of the bytes, and its kind; another hash is hash_mismatch"
    )
    consent: Annotated[
        dict[
            Literal["robots", "x_robots_tag", "tdm_reservation", "content_usage", "tdmrep", "iptc_plus", "c2pa"], bool
        ],
        BeforeValidator(_with_defaults),
    ] = shapes(CONSENT_DEFAULTS, "signals evaluated and honoured; a signal not named keeps its default")
    disallowed_header_directives: Strings = shapes(
        ["noai", "noimageai", "noindex", "noimageindex", "none", "noml"],
        "X-Robots-Tag directives that opt out",
    )
    timeout: float = tunes(
        10.0, "seconds for one try with its redirects; less for a host that has only stalled so far", gt=0
    )
    retries: int = tunes(2, "further tries after a timeout, a reset, 429 or 5xx", ge=0, le=10)
    min_rate: int = tunes(1024, "bytes a second below which a body, after 3 s, is a timeout", ge=0)
    user_agent_token: str | None = tunes(None, "token by which sites may address this crawler; default: pairmill")
    contact: str | None = tunes(None, "URL or e-mail in the user agent, for the people who run the sites")
    max_bytes: int = tunes(50_000_000, "bytes of a body, and after content decoding", ge=1)
    per_host: PerHost = tunes(PerHost(), "limits that keep us polite")
    host_budget: float = tunes(600.0, "seconds one host may hold a unit, stalls included; then host_budget", gt=0)
    allow_addresses: Strings = tunes([], "private ranges that may be fetched from, e.g. 127.64.0.0/10")
    ca_file: str | None = tunes(None, "PEM file of certificates trusted beside the system's")
    hosts_file: str | None = tunes(None, "hosts(5) file asked before DNS")
    blocklists: Strings = tunes([], "files of sha256, sha1, md5, URL md5 or pdq:<64 digits>, one a line: blocklisted")
    min_success: float = tunes(0.0, "gate: share of attempted rows that must end ok", ge=0, le=1)


class Dedupe(Section):
    levels: dict[Literal["bytes", "pdq"], bool | int] = shapes(
        {"bytes": True, "pdq": 31}, "duplicate levels; pdq: the largest Hamming distance of a duplicate; {}: none"
    )
    scope: Literal["pair", "image"] = shapes("pair", "a duplicate is an image with the same text, or any text")
    eligible: dict[str, str] = shapes(
        {}, "name → SQL over a row's metadata, as in select.rules; only rows that pass all compete"
    )
    rank: Strings = shapes(
        ["pixels", "bytes", "uid"], "who survives: the most original pixels, then bytes; uid: the lowest"
    )
    dihedral: bool = shapes(False, "also compare the seven rotations and reflections of an image")
    against: dict[str, str] = shapes({}, "evaluation set → folder, tar or table of its images, listed in overlaps")


class Encoder(Section):
    name: str = shapes(..., "name of the encoder's columns: clip_score_<name>", pattern=r"^[a-z][a-z0-9_]*$")
    arch: str | None = shapes(None, "open_clip architecture; needed where the weights do not say it")
    weights: str = shapes(
        ...,
        "file (open_clip .pt or .safetensors, OpenAI archive), folder (open_clip local-dir, Hugging Face CLIP or "
        "SigLIP), tag in open_clip's registry, or untrained",
    )
    dtype: Literal["fp32", "bf16", "fp16"] = shapes("fp32", "precision of the towers")


class Embed(Section):
    encoders: list[Encoder] = shapes([], "CLIP encoders, each with a folder of its own")
    heads: dict[str, str] = shapes({}, "score column → head: a .json beside its safetensors, or a .yaml of labels")
    eligible: dict[str, str] = tunes(
        {}, "name → SQL over a row's metadata; rows that fail one are not embedded, and select drops them so"
    )
    decode: Literal["full", "scaled"] = shapes(
        "full", "full: open_clip's own preprocessing; scaled: JPEGs decoded at the nearest scale above the input's size"
    )
    batch_size: int = tunes(256, "pairs a forward; halved where memory runs out", ge=1, le=65_536)
    num_gpus: float = tunes(1.0, "GPUs an actor, where the cluster has any; 0: the CPU", ge=0)
    decoders: int | None = tunes(None, "decode processes an actor; default: the node's cores over its actors", ge=1)


class Semantic(Section):
    encoder: str | None = shapes(None, "encoder whose image vectors are compared; null: no semantic duplicates")
    eps: float = shapes(
        0.05, "cosine above 1 − eps is a duplicate; with dedupe.scope pair, of the same text", ge=0, le=1
    )
    clusters: int | None = shapes(None, "k of k-means, from 16,385 rows on; default: the rows' square root", ge=1)
    probes: int = shapes(8, "nearest clusters in which a row's duplicates are looked for", ge=1)
    overlap_eps: float | None = shapes(
        None,
        "cosine above 1 − overlap_eps to an image of dedupe.against is an overlap, level semantic; null: not asked",
        ge=0,
        le=1,
    )


class Top(Section):
    """The best rows by a column; nulls are outside. Among equals of the last one all stay."""

    column: str = shapes(..., "column ranked, descending")
    fraction: float | None = shapes(
        None,
        "share kept, as DataComp's: value ≥ the value at place int(n·fraction) from the top, 0 the first",
        gt=0,
        le=1,
    )
    count: int | None = shapes(None, "rows kept, in place of fraction", ge=1)
    of: Literal["pool", "survivors"] = shapes(
        "pool", "population, of rows with a value: all of the round, or those that all before it leave"
    )

    @model_validator(mode="after")
    def _one(self) -> "Top":
        if (self.fraction is None) == (self.count is None):
            raise ValueError("give fraction or count, one of them")
        return self


class Balance(Section):
    """MetaCLIP's balancing, the last of all. An entry counts once a text, over the rows that all else leaves."""

    entries: str = shapes(
        ...,
        "file of entries, one a line or a .json list; ngrams:N: the N most frequent 1- and 2-grams of the first round",
    )
    t: int | None = shapes(None, "texts an entry may have before its texts are drawn", ge=1)
    tail: float | None = shapes(
        None, "in place of t: t is solved so that this share of all matches is in entries below it", gt=0, lt=1
    )
    seed: int = shapes(0, "of the draws")

    @model_validator(mode="after")
    def _one(self) -> "Balance":
        if (self.t is None) == (self.tail is None):
            raise ValueError("give t or tail, one of them")
        return self


class ImageBased(Section):
    """DataComp's image-based filter: rows in clusters of the pool that some reference image is in."""

    encoder: str = shapes(..., "encoder whose image vectors are clustered")
    reference: str = shapes(..., "reference images: .npy of vectors [n, dim], or a folder of images")
    clusters: int = shapes(100_000, "k of k-means over the pool", ge=1)


class Select(Section):
    rules: dict[str, str] = shapes(
        {}, "name → SQL predicate over a row's metadata; a row must pass all, and is dropped by the first it fails"
    )
    decontaminate: Literal["all"] | list[str] = shapes(
        "all", "sets of dedupe.against whose images are dropped as contaminated; all of them, or these; []: none"
    )
    uids: str | None = shapes(
        None, "file of the only uids kept: DataComp's .npy, .parquet with a column uid, .txt with one a line"
    )
    words: str | None = shapes(
        None,
        "file of words, one a line; only rows are kept whose text has one of them between white space, in any case",
    )
    image_based: ImageBased | None = shapes(None, "keep rows near reference images")
    top: Top | None = shapes(None, "keep the best of a column")
    balance: Balance | None = shapes(None, "balance by metadata entries, after all else")
    weight: str | None = shapes(
        None,
        "SQL number over a row's metadata, in decisions.weight of kept rows: 0 where null, negative or not finite; "
        "1 for all where not given",
    )


class Shard(Section):
    number_sample_per_shard: int = shapes(10_000, "samples a shard", ge=1, le=1_000_000)
    oom_shard_count: int = shapes(5, "digits of a shard's number", ge=1, le=12)
    output_format: Literal["webdataset", "parquet", "files"] = shapes("webdataset", "form of the dataset")
    mode: Literal["tars", "index"] = shapes("tars", "tars: the images too; index: where they lie in the pool, no bytes")


class Ray(Section):
    address: str | None = tunes(None, "Ray cluster; default: RAY_ADDRESS, else an embedded one")
    pools: dict[str, int] = tunes({}, "stage → most workers at a time; default: the cluster's CPUs")
    gpus: bool | None = tunes(
        None, "whether encoders take GPUs; default: where the cluster has some; true: also those an autoscaler brings"
    )


class Recipe(Section):
    """A whole recipe; every key may be left out."""

    ingest: Ingest = Ingest()
    download: Download = Download()
    dedupe: Dedupe = Dedupe()
    embed: Embed = Embed()
    semantic: Semantic = Semantic()
    select: Select = Select()
    shard: Shard = Shard()
    ray: Ray = Ray()
    gates: dict[str, str] = tunes(
        {}, "name → SQL over funnel(batch, stage, encoder, status, reason, rows) that must be true"
    )


class RecipeError(ValueError):
    """A recipe that cannot be used: one line that names the value, the place and the way out."""


def parse_recipe(data: object, place: str) -> Recipe:
    """Validate `data` (as YAML gives it); `place` names it in errors. Raises RecipeError."""
    if data is None:
        data = {}
    if isinstance(data, dict):
        data = {name: {} if section is None else section for name, section in data.items()}
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {place}: expected sections such as download:, got {type(data).__name__}")
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        raise RecipeError(f"recipe {place}: {_one_line(error)}") from None


def _one_line(error: ValidationError) -> str:
    first = error.errors()[0]
    path = [str(part) for part in first["loc"]]
    if path[-1] == "[key]":  # of a dict whose keys are a closed set
        path.pop()
    name = ".".join(path)
    if first["type"] == "extra_forbidden" or path[-1] != str(first["loc"][-1]):
        keys = _keys_at(path[:-1]) or re.findall("'([^']+)'", first.get("ctx", {}).get("expected", ""))
        near = difflib.get_close_matches(path[-1], keys, n=1, cutoff=0.5)
        known = ", ".join(sorted(keys))
        return f"{name} is unknown; " + (f"did you mean {near[0]}?" if near else f"known here: {known}")
    if first["type"] == "missing":
        return f"{name} is missing: {_described(path)}"
    said = first["msg"].removeprefix("Value error, ")
    return f"{name} is {first['input']!r}: {said[:1].lower()}{said[1:]}"


def _keys_at(path: list[str]) -> list[str]:
    model = _model_at(path)
    return list(model.model_fields) if model else []


def _described(path: list[str]) -> str:
    """What a field is, as its section says."""
    model = _model_at(path[:-1])
    return str(model.model_fields[path[-1]].description) if model else ""


def _model_at(path: list[str]) -> type[BaseModel] | None:
    """The section at a path, which may go through lists (a number is an item's place) and sections left out."""
    model: type[BaseModel] = Recipe
    for part in path:
        if part.isdecimal():
            continue
        inner = model.model_fields[part].annotation if part in model.model_fields else None
        sections = [one for one in (inner, *get_args(inner)) if isinstance(one, type) and issubclass(one, BaseModel)]
        if not sections:
            return None
        model = sections[0]
    return model


def shaping(section: BaseModel) -> dict[str, Any]:
    """The fields of a section that shape results, as JSON-able values."""
    chosen: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        if (field.json_schema_extra or {}).get("shapes_results"):  # type: ignore[union-attr]
            value = getattr(section, name)
            chosen[name] = json.loads(section.model_dump_json(include={name}))[name] if value is not None else None
    return chosen


def digest(value: object) -> str:
    """sha256 of a value's canonical JSON, as 16 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


OWN_SETTINGS_ONLY = ("ingest", "download", "hashes", "embed", "scores")
ORDER = ("ingest", "download", "hashes", "dedupe", "embed", "scores", "semantic", "select", "shard")
"""Folders of ROOT in the order of the flow. `hashes` and `scores` are no stages of their own: `dedupe` fills the one
where it needs it, `embed` the other."""
PER_ENCODER = ("embed", "scores")
"""Stages that have a folder an encoder."""


def fingerprint(
    recipe: Recipe, stage: str, before: dict[str, str], contents: dict[str, dict[str, str]] | None = None
) -> str:
    """The stage's fingerprint; `before` has those of the stages run before it, used by set-level stages.

    `stage` may be embed/<encoder> or scores/<encoder>. `contents` are digests of the files that a stage's settings
    name, weights and heads among them: {stage: {key: digest}}.
    """
    name, _, encoder = stage.partition("/")
    settings = _settings(recipe, name, encoder)
    if contents and contents.get(stage):
        settings = {**settings, "contents": contents[stage]}
    upstream = {} if name in OWN_SETTINGS_ONLY else before
    if name == "scores":
        upstream = {f"embed/{encoder}": before[f"embed/{encoder}"]}
    return digest({"format": FORMAT_VERSION, "stage": name, "settings": settings, "before": upstream})


def _settings(recipe: Recipe, stage: str, encoder: str) -> dict[str, Any]:
    if stage in ("ingest", "scores"):
        return {}
    if stage == "hashes":
        return {"dihedral": recipe.dedupe.dihedral}
    if stage == "embed":
        own = next(one for one in recipe.embed.encoders if one.name == encoder)
        # Weights are known by their contents, wherever they lie.
        return {**shaping(own), "weights": None, "decode": recipe.embed.decode}
    settings = shaping(getattr(recipe, stage))
    if stage in ("semantic", "select") and recipe.embed.eligible:
        settings["embed.eligible"] = recipe.embed.eligible
    return settings
