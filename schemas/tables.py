"""Arrow schemas of every published table; each field carries its description as metadata.

Types are those every reader agrees on (pandas, polars, DuckDB, pyarrow, PySpark): hashes as lower-case hex,
timestamps[us, UTC], no float16, unsigned, nanosecond or extension types.
"""

from typing import Final

import pyarrow as pa

TIMESTAMP: Final = pa.timestamp("us", tz="UTC")


def _table(description: str, *fields: tuple[str, pa.DataType, str]) -> pa.Schema:
    return pa.schema(
        [pa.field(name, type_, metadata={"description": text}) for name, type_, text in fields],
        metadata={"description": description},
    )


_SOURCE: Final = (
    ("source", pa.string(), "input file the row came from, as an absolute path or URI"),
    ("source_row", pa.int64(), "row number in `source`, from 0"),
    ("batch", pa.string(), "batch that brought the row, e.g. 0001"),
)

PAIRS: Final = _table(
    "One row a pair: an input row that passed ingest's rules and is its duplicates' survivor.",
    ("uid", pa.string(), "32 hex digits: the first 128 bits of sha256(url, U+001F, text)"),
    ("url", pa.string(), "URL as given, after UTF-8 repair"),
    ("text", pa.string(), "alt text as given, after UTF-8 repair"),
    ("text_repaired", pa.bool_(), "url or text held bytes that are not UTF-8; they are U+FFFD now"),
    ("fetch_url", pa.string(), "URL as fetched: WHATWG-normalised, without fragment"),
    ("caption", pa.string(), "what trains; equals text unless ingest.normalise or ingest.redact is on"),
    *_SOURCE,
    ("n_chars", pa.int32(), "code points in text"),
    ("n_words", pa.int32(), "runs of non-space characters in text"),
    (
        "lang",
        pa.string(),
        "language of text by ingest.lang_model; und below ingest.lang_min_score; null without a model",
    ),
    ("lang_score", pa.float32(), "the language model's score of its first answer, 0 to 1"),
    ("repetition", pa.float32(), "share of words that repeat an earlier word of the text, letter case aside (CC12M)"),
    ("repeated_trigrams", pa.float32(), "share of word trigrams that repeat an earlier one of the text"),
    (
        "has_boilerplate",
        pa.bool_(),
        "text is a file's or camera's name or says no more than image, or click to enlarge",
    ),
    ("has_url", pa.bool_(), "text holds a URL or a host name"),
    ("has_email", pa.bool_(), "text holds an e-mail address; ingest.redact replaces it in caption"),
    ("has_phone", pa.bool_(), "text holds a phone number; ingest.redact replaces it in caption"),
)

REJECTS: Final = _table(
    "Input rows that did not become a pair; with outcomes they are every input row, once.",
    *_SOURCE,
    ("url", pa.string(), "URL as given, after UTF-8 repair; null where the row had none or was withdrawn"),
    ("uid", pa.string(), "the pair's uid; null where url or text is missing, or the row was withdrawn"),
    ("status", pa.string(), "refused or rejected"),
    ("reason", pa.string(), "why, from the closed set of statuses"),
    ("detail", pa.string(), "the rule's name, the retraction's, or the value and what is wrong with it"),
    ("dup_of", pa.string(), "uid of the pair that stayed, for duplicates"),
    ("text", pa.string(), "alt text as given, after UTF-8 repair; null where the row had none or was withdrawn"),
    ("text_repaired", pa.bool_(), "url or text held bytes that are not UTF-8; they are U+FFFD now"),
    ("lang", pa.string(), "language of the text, as in pairs; null where none was asked for, or the row was withdrawn"),
)

OUTCOMES: Final = _table(
    "One row a pair: what became of the fetch, the decode and the image.",
    ("uid", pa.string(), "the pair's uid"),
    *_SOURCE,
    ("url", pa.string(), "URL as given"),
    ("text", pa.string(), "alt text as given"),
    ("caption", pa.string(), "what trains"),
    ("status", pa.string(), "ok, failed, refused or rejected"),
    ("reason", pa.string(), "why, from the closed set; null for ok"),
    ("detail", pa.string(), "the value that decided: an errno, an HTTP status, a header, a size"),
    ("http_status", pa.int32(), "status code of the last response"),
    ("final_url", pa.string(), "URL of the last response, after redirects"),
    ("content_type", pa.string(), "Content-Type header of the last response"),
    ("bytes", pa.int64(), "size of the fetched body after content decoding"),
    ("sha256", pa.string(), "sha256 of the fetched bytes"),
    ("sha1", pa.string(), "sha1 of the fetched bytes"),
    ("md5", pa.string(), "md5 of the fetched bytes"),
    ("url_md5", pa.string(), "md5 of url as given"),
    ("format", pa.string(), "format sniffed from the bytes: jpeg, png, webp, gif, avif"),
    ("original_width", pa.int32(), "width in pixels of the fetched image, as stored (before EXIF rotation)"),
    ("original_height", pa.int32(), "height in pixels of the fetched image, as stored"),
    ("width", pa.int32(), "width in pixels of the pool image"),
    ("height", pa.int32(), "height in pixels of the pool image"),
    ("exif", pa.string(), "EXIF kept by download.exif, as a JSON object"),
    ("consent_ok", pa.bool_(), "no evaluated signal forbids training; null where none was evaluated"),
    ("consent_signals", pa.string(), "the signals that were evaluated, comma-separated"),
    ("attempts", pa.int32(), "requests made for the image itself"),
    ("fetch_ms", pa.int32(), "wall milliseconds from first request to last byte"),
    ("fetched_at", TIMESTAMP, "when the last byte came"),
    ("unit", pa.string(), "download unit"),
    ("generation", pa.int32(), "generation of the unit in which the row got this outcome"),
    ("pool_file", pa.string(), "tar that holds the image, relative to ROOT"),
    ("pool_offset", pa.int64(), "first byte of the image in pool_file"),
    ("pool_size", pa.int64(), "bytes of the image"),
    ("pool_sha256", pa.string(), "sha256 of the pool image"),
)

CONSENT: Final = _table(
    "Long: one row a pair and signal that was found.",
    ("uid", pa.string(), "the pair's uid"),
    ("signal", pa.string(), "robots, x_robots_tag, tdm_reservation, content_usage, tdmrep, iptc_plus or c2pa"),
    ("value", pa.string(), "the signal as it came"),
    ("source", pa.string(), "where it came from: a header's name, the URL of a file, or xmp or c2pa inside the image"),
    ("verdict", pa.string(), "deny, or allow: it does not forbid"),
    ("rule_version", pa.string(), "the standard or draft it was judged by, with its version"),
    ("observed_at", TIMESTAMP, "when it was seen"),
)

HASHES: Final = _table(
    "Perceptual hashes of pool images.",
    ("uid", pa.string(), "the pair's uid"),
    ("pdq", pa.string(), "PDQ hash, 64 hex digits"),
    ("pdq_quality", pa.int32(), "PDQ quality, 0 to 100"),
    ("colour", pa.string(), "4 x 4 mean colours in CIE L*a*b*, 96 hex digits, row by row"),
    ("pdq_forms", pa.string(), "PDQ hashes of the seven other rotations and reflections; null unless dedupe.dihedral"),
)

DUPLICATES: Final = _table(
    "Dropped duplicates with their kept witness.",
    ("uid", pa.string(), "the dropped pair"),
    ("dup_of", pa.string(), "the witness, kept by that level"),
    ("level", pa.string(), "url, bytes, perceptual or semantic"),
    ("distance", pa.float64(), "distance to the witness, in the level's own measure"),
    ("group_id", pa.string(), "uid of the group's first kept row"),
)

OVERLAPS: Final = _table(
    "Pool images that match an evaluation set.",
    ("eval_set", pa.string(), "name of the evaluation set"),
    ("eval_item", pa.string(), "item in it"),
    ("uid", pa.string(), "the matching pair"),
    ("level", pa.string(), "bytes, perceptual or semantic"),
    ("distance", pa.float64(), "distance, in the level's own measure"),
    ("removed", pa.bool_(), "select dropped the pair for it"),
)

EMBEDDINGS: Final = _table(
    "One row a pair and encoder that was due to read it.",
    ("uid", pa.string(), "the pair's uid"),
    ("encoder", pa.string(), "name of the encoder"),
    ("status", pa.string(), "ok or failed"),
    ("reason", pa.string(), "why it failed: decode_error, or internal with the cause in detail"),
    ("detail", pa.string(), "what was wrong: not finite, zero, the decoder's words"),
    ("clip_score", pa.float32(), "cosine of the two vectors; null unless ok"),
    ("image_norm", pa.float32(), "length of the image vector as the tower gave it; null where not known"),
    ("image_embedding", pa.list_(pa.float32()), "unit-length vector; null unless ok"),
    ("text_embedding", pa.list_(pa.float32()), "unit-length vector; null unless ok"),
)

SCORES: Final = _table(
    "Scores of pairs; one column a head is added to these.",
    ("uid", pa.string(), "the pair's uid"),
    ("encoder", pa.string(), "name of the encoder; of an adopted set: b32, l14, clip_retrieval or given"),
    ("clip_score", pa.float32(), "cosine of image and text embedding"),
    ("weights_sha256", pa.string(), "sha256 of the encoder's weights"),
)

DECISIONS: Final = _table(
    "One row an ok outcome; a boolean column pass_<rule> for every rule is added to these.",
    ("uid", pa.string(), "the pair's uid"),
    ("kept", pa.bool_(), "the pair goes to shard"),
    (
        "dropped_by",
        pa.string(),
        "a rule, duplicate, contaminated, not_embedded, uids, listed_words, image_based, top, balance, retracted",
    ),
    ("weight", pa.float32(), "sampling weight; where select.weight is given, null for a dropped row"),
)

SAMPLES: Final = _table(
    "S.parquet of the dataset: img2dataset's columns, names and order, plus ours.",
    ("caption", pa.string(), "what trains"),
    ("url", pa.string(), "URL as given"),
    ("key", pa.string(), "the sample's key in its tar"),
    ("status", pa.string(), "success, as img2dataset says it"),
    ("error_message", pa.string(), "always null: failures are in the outcomes table"),
    ("width", pa.int32(), "width in pixels"),
    ("height", pa.int32(), "height in pixels"),
    ("original_width", pa.int32(), "width in pixels of the fetched image"),
    ("original_height", pa.int32(), "height in pixels of the fetched image"),
    ("exif", pa.string(), "EXIF kept by download.exif, as a JSON object"),
    ("sha256", pa.string(), "sha256 of the fetched bytes"),
    ("uid", pa.string(), "the pair's uid"),
    ("clip_score", pa.float32(), "cosine of the pair by the first encoder by name; null where it has none"),
    ("weight", pa.float32(), "sampling weight, as in decisions"),
)

INDEX: Final = pa.schema(
    [
        *SAMPLES,
        *(
            pa.field(name, OUTCOMES.field(name).type, metadata=OUTCOMES.field(name).metadata)
            for name in ("pool_file", "pool_offset", "pool_size", "pool_sha256")
        ),
    ],
    metadata={"description": "S.parquet where shard.mode is index: the samples, and where their images lie."},
)

TABLES: Final[dict[str, pa.Schema]] = {
    "pairs": PAIRS,
    "rejects": REJECTS,
    "outcomes": OUTCOMES,
    "consent": CONSENT,
    "hashes": HASHES,
    "duplicates": DUPLICATES,
    "overlaps": OVERLAPS,
    "embeddings": EMBEDDINGS,
    "scores": SCORES,
    "decisions": DECISIONS,
}
