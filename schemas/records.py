"""The small JSON records that make a ROOT: batches, units, rounds, completions, runs, the lease."""

from datetime import UTC, datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict

Counts = dict[str, dict[str, int]]
"""{status: {reason: rows}}; the reason of `ok` is the empty string."""


def now() -> str:
    """The current time as ISO 8601 in UTC, to the microsecond."""
    return datetime.now(UTC).isoformat(timespec="microseconds")


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def to_bytes(self) -> bytes:
        return self.model_dump_json(indent=1).encode() + b"\n"


class InputFile(Record):
    """An input file's identity: a known path with another size, etag or sha256 is refused."""

    source: str
    format: Literal["parquet", "csv", "tsv", "json", "jsonl", "txt"]
    bytes: int
    etag: str
    """The store's ETag, or the modification time in nanoseconds on a local disk."""
    sha256: str
    rows: int


class UnitRange(Record):
    """A unit's slice of a batch: rows whose key (host hash, URL hash) lies in [first, last]."""

    unit: str
    first: str
    """32 hex digits, or `#file.row` (both zero-padded) for rows without a usable fetch_url."""
    last: str
    rows: int
    lane: str | None = None
    """Hash of the host whose units run one at a time, for a host larger than a unit."""


class AdoptedTar(Record):
    """A tar of an adopted download as it was when it was measured."""

    uri: str
    bytes: int
    etag: str
    images: int
    """Images that rows of the Parquet file beside it name as successes."""
    orphans: int
    """Images that no such row names; they are left where they are."""
    broken: str | None = None
    """Where it stops being a tar."""


class Adopted(Record):
    """A batch whose images were not fetched: an img2dataset download's files, one tar a file of the batch."""

    path: str
    copied: bool
    """The images were copied into ROOT's pool; else they are read where they are."""
    tars: list[AdoptedTar]
    scores: list[str] = []
    """Columns that rules see of it: clip_score_<encoder> and heads."""


class Batch(Record):
    batch: str
    created_at: str
    run: str
    files: list[InputFile]
    rows: int
    """Input rows the batch answers for: all rows of its files, or `limit` of them, or those it readmits."""
    limit: int | None = None
    readmits: str | None = None
    settings: dict[str, object]
    """The ingest section of the recipe, fixed when the batch was made."""
    lang_model: dict[str, str] = {}
    """The language model of its rows: name, package, version, sha256 of the model's file; empty without one."""
    kept: list[str] = []
    """Input columns that the batch's tables carry as src_<name>: keep_columns with '*' resolved."""
    units: list[UnitRange]
    adopted: Adopted | None = None


class FileEntry(Record):
    path: str
    """Relative to the stage's folder."""
    bytes: int
    sha256: str
    rows: int
    table: str


class UnitRecord(Record):
    """A unit's commit: created exclusively and last. A file no record names does not exist."""

    unit: str
    generation: int
    attempt: int
    input_digest: str
    rows: int
    counts: Counts
    files: list[FileEntry]


class Round(Record):
    """What a round of a set-level stage reads and which units it makes."""

    round: str
    upstream: dict[str, int]
    """Upstream unit → generation."""
    units: list[dict[str, object]]
    run: str
    created_at: str
    after: dict[str, int] = {}
    """Upstream unit → generation an earlier round read: only its rows of later generations belong to this round."""
    plan: dict[str, object] = {}
    """What else the stage fixed for all units of the round."""
    batches: list[str] = []
    """Batches whose rows the round holds; a unit of one batch alone names it in its descriptor."""


class Complete(Record):
    rows: int
    counts: Counts
    files: int
    batches: list[str]
    finished_at: str


class RunRecord(Record):
    run: str
    started_at: str
    finished_at: str | None = None
    command: list[str]
    who: str
    host: str
    ray_job: str | None = None
    recipe: dict[str, object]
    versions: dict[str, str]
    stages: dict[str, str]
    """stage → fingerprint"""
    accepts: list[str] = []
    """Batches whose failed gates this run's user accepted."""
    funnel: list[dict[str, object]] = []
    failed_gates: list[dict[str, object]] = []
    exit_code: int | None = None


class LeaseRecord(Record):
    holder: str
    """Id of the run that holds the ROOT."""
    host: str
    boot_id: str
    pid: int
    pid_started: str
    """Start time of the process in clock ticks since boot, so that a reused pid is not taken for it."""
    ray_job: str | None
    epoch: int
    renewed: int


class PublishedFile(Record):
    path: str
    """Relative to ROOT."""
    bytes: int
    sha256: str
    rows: int


class Published(Record):
    """tables/<table>/latest.json: the version of the table that counts."""

    version: int
    files: list[PublishedFile]
    rows: int
    written_at: str
    made_from: dict[str, str]
    """stage → fingerprint and finished_at of the complete.json it was made from"""


class Retraction(Record):
    """retractions/0001.json: the intent of a withdrawal and, once it is finished, its receipt."""

    retraction: str
    begun_at: str
    finished_at: str | None = None
    """None while there may still be something left to remove."""
    run: str
    who: str
    host: str
    why: str
    keep_group: bool
    """The rest of a withdrawn witness's duplicate group was not withdrawn, but is decided again."""
    list_sha256: str
    listed: dict[str, int]
    """Kind → values of the list; a bare value counts for every kind it may be."""
    rows: dict[str, dict[str, int]]
    """Stage's folder → table → rows withdrawn from it."""
    pdq_unknown: int = 0
    """ok rows without a stored PDQ hash, which a PDQ list could not be compared with."""
    decide_again: list[str] = []
    """uids of the rest of duplicate groups, which stay and go into the next round of `dedupe`."""
    datasets: list[dict[str, object]] = []
    """`path`, `shards` rewritten and `samples` withdrawn of every dataset that held some."""
    tables: dict[str, int] = {}
    """`before` and `after`: versions of the published tables."""
    adopted: dict[str, int] = {}
    """Adopted tar outside ROOT → withdrawn images it still holds: it is its owner's, and was not rewritten."""
    removed_pages: list[str] = []
    """Removed, as no part of ROOT: contact sheets, pages and copies, and files that named withdrawn rows."""
    other_files: list[str] = []
    """Files under ROOT that are no part of it and were left alone."""
    bucket_versioned: bool | None = None
    """The bucket keeps old versions of objects: they are there until its owner removes them. None: cannot be known."""
    checkpoints: list[str] = []
    """Checkpoints that were trained on withdrawn samples, and runs on a dataset here that cannot be read."""
