"""Judging: located rows of one unit → pairs and rejects; every row ends in exactly one of them."""

import hashlib
from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.download.blocklist import Blocklist
from pipeline.ingest.describe import TextDescriber
from pipeline.ingest.prefilter import Prefilter
from pipeline.ingest.text import make_caption
from pipeline.retract.tombstone import Tombstones
from schemas.recipe import Ingest
from schemas.statuses import STATUS_OF
from schemas.tables import PAIRS, REJECTS


class Kept(NamedTuple):
    """A pair kept by an earlier batch."""

    fetch_url: str
    text: str
    uid: str


class Judged(NamedTuple):
    pairs: pa.Table
    rejects: pa.Table


def uid_of(url: str, text: str) -> str:
    """32 hex digits: the first 128 bits of sha256(url, U+001F, text)."""
    return hashlib.sha256(f"{url}\x1f{text}".encode()).hexdigest()[:32]


def with_src(schema: pa.Schema, kept: list[str]) -> pa.Schema:
    """A table's schema with the batch's kept input columns."""
    fields = [pa.field(f"src_{name}", pa.string(), metadata={"description": f"input column {name}"}) for name in kept]
    return pa.schema([*schema, *fields], metadata=schema.metadata)


class Judge:
    """The rules of one batch. `sources` are its files' paths by index; `untexted` those whose rows need no text."""

    def __init__(
        self, batch: str, settings: Ingest, kept: list[str], sources: list[str], untexted: Iterable[int],
        describe: TextDescriber, blocklist: Blocklist | None = None, tombstones: Tombstones | None = None,
    ) -> None:  # fmt: skip
        self._batch = batch
        self._settings = settings
        self._kept = kept
        self._sources = pa.array(sources, pa.large_string())
        self._untexted = pa.array(sorted(untexted), pa.int32())
        self._describe = describe
        self._blocklist = blocklist or Blocklist()
        self._tombstones = tombstones or Tombstones({})
        self._prefilter = Prefilter(settings.prefilter, kept)

    def __call__(self, located: pa.Table, earlier: Iterable[Kept]) -> Judged:
        """Judge the rows of a unit, sorted by (hi, lo, file, row); all rows of a fetch_url are in one unit.

        `earlier` are pairs of earlier batches, in order of (batch, source, source_row): at least those with a
        fetch_url of this unit.
        """
        rows = self._described(located)
        reasons = self._own_reasons(located, rows["n_words"])
        details: list[str | None] = located["detail"].to_pylist()
        withdrawn = self._withdrawn(rows)
        for index, retraction in enumerate(withdrawn):
            if retraction is not None:
                # Another reason's detail may quote the URL.
                details[index] = retraction if reasons[index] is None else None
                reasons[index] = reasons[index] or "retracted"
        if self._blocklist.has_urls:
            for index, url in enumerate(rows["url"].to_pylist()):
                if reasons[index] is None and (match := self._blocklist.url(url)):
                    reasons[index], details[index] = match
        passed = [index for index, reason in enumerate(reasons) if reason is None]
        for index, rule in zip(passed, self._prefilter.failing(rows.take(pa.array(passed, pa.int64()))), strict=True):
            if rule is not None:
                reasons[index], details[index] = "text_rule", rule
        uids, dup_of = self._uids(rows, reasons, earlier)
        decided = {
            "uid": uids,
            "status": [None if reason is None else STATUS_OF[reason] for reason in reasons],
            "reason": reasons,
            "detail": details,
            "dup_of": dup_of,
        }
        for name, values in decided.items():
            rows = rows.append_column(name, pa.array(values, pa.large_string()))
        kept = pa.array([reason is None for reason in reasons], pa.bool_())
        pairs = rows.filter(kept)
        as_given = rows.set_column(rows.column_names.index("text"), "text", located["text"])
        rejects = _forgotten(as_given, withdrawn).filter(pc.invert(kept))
        rejects = rejects.take(np.lexsort((rejects["source_row"].to_numpy(), rejects["file"].to_numpy())))
        return Judged(
            _fitted(self._captioned(pairs), with_src(PAIRS, self._kept)),
            _fitted(rejects, with_src(REJECTS, self._kept)),
        )

    def _described(self, located: pa.Table) -> pa.Table:
        """Every column of pairs that a row has by itself, and `file`."""
        count = len(located)
        text = pc.fill_null(located["text"].combine_chunks(), "")
        columns = {
            "file": located["file"],
            "source": self._sources.take(located["file"].combine_chunks()),
            "source_row": located["row"],
            "batch": pa.array([self._batch] * count, pa.string()),
            "url": located["url"],
            "text": text,
            "text_repaired": located["repaired"],
            "fetch_url": located["fetch_url"],
            **self._describe(text),
        }
        for name in (f"src_{name}" for name in self._kept):
            there = name in located.column_names
            columns[name] = located[name] if there else pa.nulls(count, pa.large_string())
        return pa.table(columns)

    def _own_reasons(self, located: pa.Table, n_words: pa.ChunkedArray) -> list[str | None]:
        """What reading and the URL said of each row, and between the two whether its text is missing."""
        reasons: list[str | None] = located["reason"].to_pylist()
        if self._settings.require_text:
            exempt = pc.is_in(located["file"], self._untexted)
            missing = pc.and_not(pc.equal(n_words, 0), exempt).to_numpy()
            for index in np.flatnonzero(missing).tolist():
                if reasons[index] != "bad_row":
                    reasons[index] = "missing_text"
        return reasons

    def _uids(
        self, rows: pa.Table, reasons: list[str | None], earlier: Iterable[Kept]
    ) -> tuple[list[str | None], list[str | None]]:
        """Each row's uid, and for duplicates (marked in `reasons`) the survivor's; the first of equals stays."""
        by_text = self._settings.dedupe == "url_text"
        urls, fetch_urls, texts = (rows[name].to_pylist() for name in ("url", "fetch_url", "text"))
        survivors: dict[tuple[str, str], str] = {}
        for pair in earlier:
            survivors.setdefault((pair.fetch_url, pair.text if by_text else ""), pair.uid)
        uids: list[str | None] = [None] * len(urls)
        dup_of: list[str | None] = [None] * len(urls)
        for index, reason in enumerate(reasons):
            if reason in ("bad_row", "missing_text") or not urls[index]:
                continue
            uid = uids[index] = uid_of(urls[index], texts[index])
            if reason is not None:
                continue
            key = (fetch_urls[index], texts[index] if by_text else "")
            if key in survivors:
                reasons[index], dup_of[index] = "duplicate", survivors[key]
            else:
                survivors[key] = uid
        return uids, dup_of

    def _withdrawn(self, rows: pa.Table) -> list[str | None]:
        """For each row, the retraction that named its URL, its host or its uid."""
        if not self._tombstones:
            return [None] * len(rows)
        columns = (rows[name].to_pylist() for name in ("url", "fetch_url", "text"))
        return [
            self._tombstones.url(url, fetched) or self._tombstones.has("uid", uid_of(url, text)) if url else None
            for url, fetched, text in zip(*columns, strict=True)
        ]

    def _captioned(self, pairs: pa.Table) -> pa.Table:
        captions = pairs["text"]
        if self._settings.normalise or self._settings.redact:
            made = [make_caption(t, self._settings.normalise, self._settings.redact) for t in captions.to_pylist()]
            captions = pa.array(made, pa.large_string())
        return pairs.append_column("caption", captions)


def _forgotten(rows: pa.Table, withdrawn: list[str | None]) -> pa.Table:
    """Rows that were withdrawn say where in the input they are, and nothing that the input says there."""
    if not any(withdrawn):
        return rows
    gone = pa.array([name is not None for name in withdrawn], pa.bool_())
    for index, field in enumerate(rows.schema):
        if field.name in ("url", "text", "uid", "dup_of", "text_repaired", "lang") or field.name.startswith("src_"):
            rows = rows.set_column(index, field, pc.if_else(gone, pa.scalar(None, field.type), rows[field.name]))
    return rows


_MANY_BYTES = 1 << 30


def _fitted(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The schema's columns in its order and types; string columns have 2 GiB a chunk, so huge texts get chunks."""
    table = table.select(schema.names)
    step = 64 if table.nbytes > _MANY_BYTES else max(1, len(table))
    slices = [table.slice(start, step).combine_chunks() for start in range(0, max(1, len(table)), step)]
    return pa.concat_tables([piece.cast(schema) for piece in slices])
