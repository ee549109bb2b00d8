"""Which rows a list withdraws: those it names, whatever shares their image, and the groups they were witness of."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline.download.blocklist import PDQ_QUALITY
from pipeline.retract.listing import Kind, Listed, as_fetched
from pipeline.retract.read import every_folder, in_parallel, open_file, parquet_files, tables
from pipeline.retract.tombstone import host_of, md5_of, near_pdq
from pipeline.storage import Store
from pipeline.units import StageFolder, current_folder
from schemas.records import UnitRecord


@dataclass
class Found:
    """What goes. Held in memory: 100 to 200 bytes a withdrawn row, nothing for the others."""

    uids: set[str] = field(default_factory=set)
    urls: set[str] = field(default_factory=set)
    """As fetched."""
    bodies: set[str] = field(default_factory=set)
    """sha256 of fetched bytes and of pool images; empty where the rest of groups stays."""
    hit: set[tuple[Kind, str]] = field(default_factory=set)
    """Listed sha256 and PDQ hashes that some row has (has nearly)."""
    again: set[str] = field(default_factory=set)
    """Rows that stay but whose witness goes: they are decided again."""
    adopted: Counter[str] = field(default_factory=Counter)
    """Tar outside ROOT → images of withdrawn rows in it."""
    pdq_unknown: int = 0
    rows: dict[str, dict[str, int]] = field(default_factory=dict)
    """Stage's folder → table → rows that go."""

    def size(self) -> tuple[int, int, int, int]:
        return len(self.uids), len(self.urls), len(self.bodies), len(self.again)


def find_matches(store: Store, listed: Listed, keep_group: bool) -> Found:
    """Look through every folder of every stage, again and again until nothing more is drawn in."""
    found = _Search(store, listed, keep_group).run()
    for base, tables_ in _count(store, found).items():
        found.rows[base] = tables_
    return found


class _Search:
    def __init__(self, store: Store, listed: Listed, keep_group: bool) -> None:
        self._store = store
        self._listed = listed
        self._keep_group = keep_group
        self._found = Found()
        self._first = True
        self._by_url = any(listed.values.get(kind) for kind in ("url", "host", "url_md5"))

    def run(self) -> Found:
        found = self._found
        found.uids |= self._listed.values.get("uid", frozenset())
        before = None
        while before != found.size():
            before = found.size()
            for folder in every_folder(self._store, "ingest"):
                self._input(folder, "pairs")
                self._input(folder, "rejects")
            for folder in every_folder(self._store, "download"):
                self._outcomes(folder)
            if self._first and self._listed.values.get("pdq"):
                self._hashes()
            for folder in every_folder(self._store, "dedupe", "semantic"):
                self._duplicates(folder)
            self._first = False
        found.again -= found.uids
        return found

    def _url_is_listed(self, url: str, fetched: str) -> bool:
        if not (self._first and self._by_url):
            return False
        return (
            ("url", fetched) in self._listed
            or ("host", host_of(fetched) or "") in self._listed
            or ("url_md5", md5_of(url)) in self._listed
            or ("url_md5", md5_of(fetched)) in self._listed
        )

    def _input(self, folder: StageFolder, table: str) -> None:
        """pairs or rejects; a rejected row may name an image that other rows have."""
        found = self._found
        for unit in tables(folder, table, ("uid", "url", "fetch_url")):
            for uid, url, fetched in _rows(unit, "uid", "url", "fetch_url"):
                if url is None:
                    continue
                fetched = fetched or as_fetched(url)
                if uid in found.uids or fetched in found.urls or self._url_is_listed(url, fetched):
                    found.urls.add(fetched)
                    if uid is not None:
                        found.uids.add(uid)

    def _outcomes(self, folder: StageFolder) -> None:
        found = self._found
        columns = ("uid", "url", "final_url", "sha256", "sha1", "md5", "pool_sha256")
        for unit in tables(folder, "outcomes", columns):
            for uid, url, final, sha256, sha1, md5, image in _rows(unit, *columns):
                if uid in found.uids or self._image_goes(final, sha256, sha1, md5, image):
                    found.uids.add(uid)
                    found.urls.add(as_fetched(url))
                    if not self._keep_group:
                        found.bodies |= {digest for digest in (sha256, image) if digest}

    def _image_goes(
        self, final: str | None, sha256: str | None, sha1: str | None, md5: str | None, image: str | None
    ) -> bool:
        found, listed = self._found, self._listed
        if sha256 in found.bodies or image in found.bodies:
            return True
        if final is not None and (final in found.urls or self._url_is_listed(final, as_fetched(final))):
            return True
        named: list[tuple[Kind, str | None]] = [("sha256", sha256), ("sha256", image), ("sha1", sha1), ("md5", md5)]
        hit = {(kind, digest) for kind, digest in named if self._first and digest and (kind, digest) in listed}
        found.hit |= hit
        return bool(hit)

    def _hashes(self) -> None:
        """PDQ hashes within the distance of a listed one; and how many ok rows have none to compare."""
        values = sorted(self._listed.values["pdq"])
        wanted = np.frombuffer(bytes.fromhex("".join(values)), np.uint64).reshape(-1, 4)
        hashed = 0
        for folder in every_folder(self._store, "hashes"):
            for unit in tables(folder, "hashes", ("uid", "pdq", "pdq_quality")):
                rows = [row for row in _rows(unit, "uid", "pdq", "pdq_quality") if row[1] is not None]
                hashed += len(rows)
                rows = [row for row in rows if (row[2] or 0) >= PDQ_QUALITY]
                near = near_pdq(wanted, [row[1] for row in rows])
                for row, place in zip(rows, near.tolist(), strict=True):
                    if place >= 0:
                        self._found.uids.add(row[0])
                        self._found.hit.add(("pdq", values[place]))
        download = current_folder(self._store, "download")
        records = download.iter_records() if download else ()
        self._found.pdq_unknown = max(0, sum(record.counts.get("ok", {}).get("", 0) for record in records) - hashed)

    def _duplicates(self, folder: StageFolder) -> None:
        """Rows whose witness goes, however many levels up; those of `semantic` (near, no copies) are decided again."""
        found = self._found
        stay = self._keep_group or folder.stage == "semantic"
        for unit in tables(folder, "duplicates", ("uid", "dup_of", "group_id")):
            for uid, dup_of, group in _rows(unit, "uid", "dup_of", "group_id"):
                if dup_of in found.uids or group in found.uids:
                    (found.again if stay else found.uids).add(uid)
                elif dup_of in found.again:
                    found.again.add(uid)


def _rows(unit: Any, *columns: str) -> Any:
    return zip(*(unit[column] for column in columns), strict=True)


def _count(store: Store, found: Found) -> dict[str, dict[str, int]]:
    """Rows that go, by folder and table, and images of theirs in tars that are not ours."""
    rows: dict[str, dict[str, int]] = {}

    def look(item: tuple[StageFolder, UnitRecord]) -> tuple[Counter[str], Counter[str]]:
        folder, record = item
        own: Counter[str] = Counter()
        adopted: Counter[str] = Counter()
        for entry in parquet_files(record):
            with open_file(folder, entry) as file:
                names = set(file.schema_arrow.names)
                if "uid" not in names:
                    continue
                columns = [name for name in ("uid", "url", "pool_file") if name in names and _needed(entry.table, name)]
                table = file.read(columns=columns)
            values = {name: table[name].to_pylist() for name in columns}
            for place, uid in enumerate(values["uid"]):
                goes = uid in found.uids
                if entry.table == "rejects" and not goes and (url := values["url"][place]) is not None:
                    goes = as_fetched(url) in found.urls
                own[entry.table] += goes
                if goes and entry.table == "outcomes" and "://" in (values["pool_file"][place] or ""):
                    adopted[values["pool_file"][place]] += 1
        return own, adopted

    for folder in every_folder(store):
        total: Counter[str] = Counter()
        work = ((folder, record) for record in folder.iter_records())
        for own, adopted in in_parallel(store, look, work):
            total.update(own)
            found.adopted.update(adopted)
        if any(total.values()):
            rows[folder.base] = {table: number for table, number in sorted(total.items()) if number}
    return rows


def _needed(table: str, column: str) -> bool:
    return column == "uid" or (table, column) in (("rejects", "url"), ("outcomes", "pool_file"))
