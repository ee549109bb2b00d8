"""Pass A: input files → parts under ROOT/ingest/<fingerprint>/scratch/, piece by piece, on any number of nodes."""

import hashlib
import json
import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.ingest.normalise import located
from pipeline.ingest.parquet import open_parquet, read_parquet, row_group_runs
from pipeline.ingest.partition import Part, PartReader, write_parts
from pipeline.ingest.readers import read_text
from pipeline.ingest.sources import Source, opened, stat_source
from pipeline.runner import Result, Unit
from pipeline.storage import Store, open_store
from pipeline.units import MAX_LONE_DEATHS
from schemas.recipe import Ingest
from schemas.records import InputFile

LARGE_PARQUET = 64 * 1024 * 1024
"""Bytes above which a Parquet file is read in several pieces."""


@dataclass(frozen=True)
class Scan:
    """What pass A found; kept as `manifest.json` beside the parts, so that a resumed run can use them."""

    files: list[InputFile]
    parts: list[Part]
    kept: list[str]
    threshold: int | None
    """With a limit: rows whose draw is at most this are the batch's."""
    rows: int
    """Of the batch: all rows of its files, or those drawn or readmitted."""

    def to_bytes(self) -> bytes:
        value = {**asdict(self), "files": [file.model_dump() for file in self.files]}
        return json.dumps(value).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> "Scan":
        value = json.loads(data)
        files = [InputFile.model_validate(file) for file in value.pop("files")]
        return cls(files=files, parts=[Part(**part) for part in value.pop("parts")], **value)

    def reader(self, store: Store) -> PartReader:
        return PartReader(store, self.parts, self.threshold)


def plan_pieces(sources: list[Source]) -> list[Unit]:
    """One piece a file, but runs of row groups for large Parquet files. Raises InputError for broken footers."""
    pieces: list[Unit] = []
    for index, source in enumerate(sources):
        runs: list[tuple[int, list[int] | None]] = [(0, None)]
        if source.format == "parquet" and source.bytes > LARGE_PARQUET:
            runs = list(row_group_runs(open_parquet(source.source)))
        for number, (first, groups) in enumerate(runs):
            plan = {"file": index, "source": asdict(source), "first": first, "groups": groups, "piece": number}
            name = f"{index:06d}-{number:06d}"
            # A piece's weight, by which the longest go first: its share of the file's bytes, unpacked.
            packed = source.gzipped or source.format == "parquet"
            weight = source.bytes // len(runs) * (8 if packed else 1)
            pieces.append({"unit": name, "generation": 0, "rows": weight, "plan": json.dumps(plan)})
    return pieces


class PieceReader:
    """Reads, normalises and sorts one piece at a time into parts."""

    def __init__(self, root: str, folder: str, settings: Ingest, limit: int | None, run: str) -> None:
        self._store = open_store(root)
        self._folder = folder
        self._settings = settings
        self._limit = limit
        self._run = run

    def run(self, unit: Unit, alone: bool) -> Result:
        """The answer is JSON: the piece's parts, rows, kept columns and, of a first piece, the file's sha256.

        Input that cannot be read is answered as `error`, so that the driver can end with its one clear line.
        """
        plan = json.loads(unit["plan"])
        try:
            self._begin(unit["unit"], plan["source"]["source"])
            answer = self._read(unit["unit"], plan)
        except InputError as error:
            answer = {"error": str(error)}
        return {"unit": unit["unit"], "state": "done", "rows": unit["rows"], "answer": json.dumps(answer)}

    def _begin(self, name: str, source: str) -> None:
        """Leave a mark. Raises InputError if reading the piece has killed as many workers as a unit may."""
        marks = (f"{self._folder}/{name}.{self._run}.{number}" for number in range(1, MAX_LONE_DEATHS + 1))
        if not any(self._store.create(mark, uuid.uuid4().bytes) for mark in marks):
            raise InputError(
                f"input {source}: {MAX_LONE_DEATHS} workers died reading it, most likely for want of memory; "
                "give workers more, or split the file"
            )

    def _read(self, name: str, plan: dict[str, Any]) -> dict[str, Any]:
        source = Source(**plan["source"])
        count = 0
        kept: dict[str, None] = {}
        digest: list[str] = []

        def tables() -> Iterator[pa.Table]:
            nonlocal count
            for table in self._tables(source, plan, digest):
                count += len(table)
                kept.update(dict.fromkeys(c.removeprefix("src_") for c in table.column_names if c[:4] == "src_"))
                table = located(table)
                table = table.append_column("file", pa.array(np.full(len(table), plan["file"], np.int32)))
                if self._limit is not None:
                    table = table.append_column("draw", pa.array(draws(source.source, table["row"].to_pylist())))
                yield table

        parts = write_parts(self._store, f"{self._folder}/{name}", plan["file"], tables(), self._limit)
        now = stat_source(source.source)
        if now != source:
            raise InputError(f"input {source.source}: has changed while it was read; run again when it is whole")
        return {
            "parts": [asdict(part) for part in parts], "rows": count, "kept": list(kept),
            "sha256": digest[0] if digest else None,
        }  # fmt: skip

    def _tables(self, source: Source, plan: dict[str, Any], digest: list[str]) -> Iterator[pa.Table]:
        if source.format == "parquet":
            yield from read_parquet(source.source, plan["first"], plan["groups"], self._settings)
            if plan["piece"] == 0:
                with opened(source.source) as stream:
                    digest.append(stream.sha256())
            return
        with opened(source.source) as stream:
            yield from read_text(stream, source.format, self._settings, source.source)
            digest.append(stream.sha256())


def draws(source: str, rows: Iterable[int]) -> np.ndarray:
    """The first 64 bits of sha256(source, U+001F, row in decimals), by which --limit draws."""
    head = hashlib.sha256(f"{source}\x1f".encode())
    found = bytearray()
    for row in rows:
        digest = head.copy()
        digest.update(b"%d" % row)
        found += digest.digest()[:8]
    return np.frombuffer(bytes(found), ">u8").astype(np.uint64)


def fold(store: Store, sources: list[Source], answers: dict[str, str], settings: Ingest, limit: int | None) -> Scan:
    """Put the pieces' answers together. Raises InputError for the first piece, in order, that could not be read."""
    rows = [0] * len(sources)
    digests = [""] * len(sources)
    parts: list[Part] = []
    kept: dict[str, None] = {}
    for name in sorted(answers):
        answer = json.loads(answers[name])
        if "error" in answer:
            raise InputError(answer["error"])
        index = int(name.partition("-")[0])
        rows[index] += answer["rows"]
        digests[index] = answer["sha256"] or digests[index]
        parts += [Part(**part) for part in answer["parts"]]
        kept.update(dict.fromkeys(answer["kept"]))
    files = [
        InputFile(source=s.source, format=s.format, bytes=s.bytes, etag=s.etag, sha256=digest, rows=count)
        for s, digest, count in zip(sources, digests, rows, strict=True)
    ]
    names = sorted(kept) if "*" in settings.keep_columns else [*dict.fromkeys(settings.keep_columns)]
    total = sum(rows)
    threshold = None
    if limit is not None and limit < total:
        drawn = np.concatenate(list(PartReader(store, parts, None).draws()))
        threshold, total = int(np.partition(drawn, limit - 1)[limit - 1]), limit
    return Scan(files, parts, names, threshold, total)
