"""Making a batch: which input files are new, their rows as sorted parts, the units, and the record that fixes them."""

import logging
from collections.abc import Sequence

from pipeline.errors import InputError, StoreError
from pipeline.ingest.cut import cut_units
from pipeline.ingest.language import identity
from pipeline.ingest.passes import run_pass
from pipeline.ingest.prefilter import Prefilter
from pipeline.ingest.scan import PieceReader, Scan, fold, plan_pieces
from pipeline.ingest.sources import Source, find_sources, opened, stat_source
from pipeline.runner import Result
from pipeline.stop import StopFlag
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import Ingest, Recipe, digest, fingerprint
from schemas.records import Adopted, Batch, InputFile, now

log = logging.getLogger(__name__)


def ingest_folder(store: Store, recipe: Recipe) -> StageFolder:
    return StageFolder(store, "ingest", fingerprint(recipe, "ingest", {}))


def make_from_inputs(
    store: Store, recipe: Recipe, known: Sequence[Batch], inputs: Sequence[str], limit: int | None, run: str,
    adopted: Adopted | None = None,
) -> Batch | None:  # fmt: skip
    """A batch of the input files no batch has, or None. Raises InputError where they cannot be read to their end."""
    check_limit(store, limit, known)
    sources = new_sources(store, known, inputs)
    if not sources:
        return None
    if limit is None and any(batch.limit for batch in known):
        raise InputError(f"output {store.uri}: its batches were made with --limit; give the same for new input")
    settings = recipe.ingest
    name = next_name(known)
    files = [(source.source, source.bytes, source.etag) for source in sources]
    scratch = scratch_of(store, recipe, name, files, settings.model_dump(mode="json"), limit)
    scan = scan_sources(store, recipe, scratch, sources, settings, limit, run)
    return record_batch(
        store, scan, scratch,
        Batch(
            batch=name, created_at=now(), run=run, files=scan.files, rows=scan.rows, limit=limit,
            settings=settings.model_dump(mode="json"), kept=scan.kept, units=[], adopted=adopted,
        ),
    )  # fmt: skip


def new_sources(store: Store, known: Sequence[Batch], inputs: Sequence[str]) -> list[Source]:
    """The input files no batch has. Raises InputError for a known path with new content."""
    seen = {file.source: (file, batch.batch) for batch in reversed(known) for file in batch.files}
    fresh = []
    for source in find_sources(list(inputs), store.uri):
        if source.source not in seen:
            fresh.append(source)
            continue
        file, batch_name = seen[source.source]
        if (source.bytes, source.etag) != (file.bytes, file.etag) and not _same_content(source, file):
            raise InputError(
                f"input {source.source}: batch {batch_name} has read this path with other content; "
                "a ROOT's input is never replaced, so give the new content a new name"
            )
    return fresh


def _same_content(source: Source, file: InputFile) -> bool:
    """A file that was touched or copied has another time, but not other bytes."""
    if source.bytes != file.bytes:
        return False
    with opened(source.source) as stream:
        return stream.sha256() == file.sha256


def check_limit(store: Store, limit: int | None, known: Sequence[Batch]) -> None:
    if limit is not None and limit < 1:
        raise InputError(f"--limit {limit}: has to be at least 1")
    for batch in known:
        if limit is not None and batch.readmits is None and batch.limit != limit:
            raise InputError(
                f"--limit {limit}: batch {batch.batch} of {store.uri} was made with "
                + (f"--limit {batch.limit}" if batch.limit else "no limit")
                + "; use the same, or another --output"
            )


def next_name(known: Sequence[Batch]) -> str:
    return f"{int(known[-1].batch) + 1 if known else 1:04d}"


def scratch_of(
    store: Store, recipe: Recipe, name: str, files: Sequence[tuple[str, int, str]], settings: object,
    limit: int | None, readmits: str | None = None,
) -> str:  # fmt: skip
    """The folder of a batch's parts. It depends on what is read and how, so that leftovers are never mixed in."""
    token = digest([list(map(list, files)), settings, limit, readmits])
    return f"{ingest_folder(store, recipe).base}/scratch/{name}-{token}"


def scratch_of_batch(store: Store, recipe: Recipe, batch: Batch) -> str:
    files = [(file.source, file.bytes, file.etag) for file in batch.files]
    return scratch_of(store, recipe, batch.batch, files, batch.settings, batch.limit, batch.readmits)


def scan_sources(
    store: Store, recipe: Recipe, scratch: str, sources: Sequence[Source], settings: Ingest, limit: int | None,
    run: str,
) -> Scan:  # fmt: skip
    """Pass A over all sources, its manifest written last."""
    pieces = plan_pieces(list(sources))
    answers: dict[str, str] = {}
    root = store.uri

    def make() -> PieceReader:
        return PieceReader(root, scratch, settings, limit, run)

    def report(result: Result) -> None:
        if result["state"] == "done":
            answers[result["unit"]] = result["answer"]

    small = sum(piece["rows"] for piece in pieces) < SMALL_BYTES
    run_pass(recipe, make, [[piece] for piece in pieces], StopFlag(root, run), report, small)
    if len(answers) < len(pieces):
        raise StoreError("stopped while the input was read; the same command begins that again")
    scan = fold(store, list(sources), answers, settings, limit)
    store.replace(f"{scratch}/manifest.json", scan.to_bytes())
    return scan


SMALL_BYTES = 64 * 1024 * 1024
"""Input below this is read in this process: Ray would take longer to start than the work takes."""


def record_batch(store: Store, scan: Scan, scratch: str, batch: Batch) -> Batch:
    """Cut the units and create the batch's record.

    Raises InputError for a prefilter or a language model that cannot be used.
    """
    settings = Ingest.model_validate(batch.settings)
    Prefilter(settings.prefilter, batch.kept)
    lang_model = identity(settings.lang_model)
    units = cut_units(batch.batch, scan.reader(store), batch.rows)
    batch = batch.model_copy(update={"units": units, "lang_model": lang_model})
    if not store.create(f"batches/{batch.batch}.json", batch.to_bytes()):
        raise StoreError(f"output {store.uri}: another run has made batch {batch.batch} meanwhile; run again")
    log.info("batch %s: %d rows in %d units", batch.batch, batch.rows, len(batch.units))
    return batch


def ensure_scan(store: Store, recipe: Recipe, batch: Batch, scratch: str, run: str) -> None:
    """Read a batch's files again if its parts are gone. Raises InputError if a file is no longer what it was."""
    if store.size(f"{scratch}/manifest.json") is not None:
        return
    sources = []
    for file in batch.files:
        source = stat_source(file.source)
        if (source.bytes, source.etag) != (file.bytes, file.etag) and not _same_content(source, file):
            raise InputError(
                f"input {file.source}: has changed since batch {batch.batch} was made of it, and units of that "
                "batch are still to be ingested; put the file back"
            )
        sources.append(source)
    scan_sources(store, recipe, scratch, sources, Ingest.model_validate(batch.settings), batch.limit, run)
