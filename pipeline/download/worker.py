"""One download worker: fetches a unit's URLs politely, decodes and resizes, and commits the unit."""

import asyncio
import hashlib
import itertools
import json
import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.attempt import attempt_unit
from pipeline.download.blocklist import OF_THE_IMAGE, Blocklist, is_withdrawn
from pipeline.download.checks import BodyChecks, Reasons
from pipeline.download.fetch import Fetched, Fetcher
from pipeline.download.pool import PoolWriter
from pipeline.download.rows import Outcomes, Target, by_host, targets
from pipeline.faults import fault_point
from pipeline.fence import Fence
from pipeline.images.process import ImageError, ImageProcessor, Processed
from pipeline.images.sandbox import SandboxedProcessor
from pipeline.retract.tombstone import Tombstones
from pipeline.runner import Result, Unit
from pipeline.storage import open_store
from pipeline.units import MAX_LONE_DEATHS, Attempt, Output, StageFolder, count
from schemas.recipe import Download
from schemas.records import FileEntry, UnitRecord

log = logging.getLogger(__name__)

DECODE_THREADS = 1
COMMIT_THREADS = 2
"""A commit waits for the disk or the store: no decoding waits with it."""


class DownloadWorker:
    """Owns an event loop in a thread, one Fetcher on it and the decode threads; units share them all."""

    def __init__(self, root: str, ingest: str, download: str, settings: Download, run: str) -> None:
        self._store = open_store(root)
        self._ingest = StageFolder(self._store, "ingest", ingest)
        self._folder = StageFolder(self._store, "download", download, Fence(self._store))
        self._settings = settings
        self._run = run
        self._blocklist = Blocklist(settings.blocklists, Tombstones.load(self._store))
        self._checks = BodyChecks(settings, self._blocklist)
        self._threads = ThreadPoolExecutor(DECODE_THREADS)
        self._commits = ThreadPoolExecutor(COMMIT_THREADS)
        self._turns = itertools.count()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._fetcher = self._call(self._open())

    async def _open(self) -> Fetcher:
        return await Fetcher(self._settings).__aenter__()

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def run(self, unit: Unit, alone: bool) -> Result:
        """Fetch and commit one unit; `deferred` where an earlier attempt died and this is not a lone pass."""
        result = attempt_unit(
            self._folder, unit, self._run, alone, lambda attempt: self._call(self._unit(unit, attempt, alone))
        )
        if unit.get("retry") and result["state"] == "done":
            result["rows"] = unit["rows"]
        return result

    async def _unit(self, unit: Unit, attempt: Attempt, alone: bool) -> UnitRecord:
        upstream = self._ingest.record(unit["unit"], unit["ingest_generation"])
        pairs = self._read_table(self._ingest, upstream, "pairs")
        made = Outcomes(pairs, attempt.unit, attempt.generation)
        wanted, kept_files = self._keep_earlier(unit, pairs, made)
        scratch = self._store.scratch()
        pool = PoolWriter(scratch / "pool.tar")
        try:
            if attempt.lone_deaths >= MAX_LONE_DEATHS:
                detail = f"{attempt.lone_deaths} workers died over this unit"
                for row in made.unfinished():
                    made.set(row, "internal", {"detail": detail})
            elif alone:
                sandbox = SandboxedProcessor(self._settings)
                try:
                    await self._fetch_all(targets(pairs, wanted), pairs, made, pool, sandbox)
                finally:
                    sandbox.close()
            else:
                await self._fetch_all(targets(pairs, wanted), pairs, made, pool, ImageProcessor(self._settings))
            pool.close()
            return await asyncio.get_running_loop().run_in_executor(
                self._commits, self._commit, attempt, upstream, made, pool, scratch, kept_files
            )
        finally:
            pool.close()
            for left in scratch.iterdir():
                left.unlink()
            scratch.rmdir()

    def _read_table(self, folder: StageFolder, record: UnitRecord, table: str) -> pa.Table:
        entry = next(entry for entry in record.files if entry.table == table)
        return pq.read_table(pa.BufferReader(self._store.read(f"{folder.base}/{entry.path}")))

    def _keep_earlier(self, unit: Unit, pairs: pa.Table, made: Outcomes) -> tuple[set[int] | None, list[FileEntry]]:
        """For a retry: keep the outcomes that stand; the rows to fetch again, and the files that stay."""
        if not unit.get("retry"):
            return None, []
        earlier = self._folder.record(unit["unit"], unit["generation"] - 1)
        rows = self._read_table(self._folder, earlier, "outcomes").to_pylist()
        again = {row for row, outcome in enumerate(rows) if outcome["reason"] in unit["retry"]}
        for row, outcome in enumerate(rows):
            if row not in again:
                made.keep(row, outcome)
        fetched_again = {rows[row]["uid"] for row in again}
        consent = self._read_table(self._folder, earlier, "consent").to_pylist()
        made.keep_consent([signal for signal in consent if signal["uid"] not in fetched_again])
        return again, [entry for entry in earlier.files if entry.table == "pool"]

    async def _fetch_all(
        self, fetches: list[Target], pairs: pa.Table, made: Outcomes, pool: PoolWriter,
        processor: ImageProcessor | SandboxedProcessor,
    ) -> None:  # fmt: skip
        turn = next(self._turns)  # older units first, so that they end, and are committed, one after another
        columns = {name: pairs[name].to_pylist() for name in pairs.column_names if name == "uid" or name == "url"}
        for wanted in (self._settings.bbox_col, self._settings.verify_hash and self._settings.verify_hash[0]):
            if wanted:
                columns[wanted] = pairs[f"src_{wanted}"].to_pylist()

        async def drain(queue: list[Target]) -> None:
            while queue:
                await self._target(queue.pop(), turn, columns, made, pool, processor)

        async def host(name: str, queue: list[Target]) -> None:
            queue.reverse()
            lines = min(self._settings.per_host.connections, len(queue))
            await asyncio.gather(*(drain(queue) for _ in range(lines)))
            self._fetcher.forget(name)

        hosts = by_host(fetches, lambda url: urlsplit(url).hostname or "")
        try:
            async with asyncio.TaskGroup() as group:
                for name, queue in hosts:
                    group.create_task(host(name, queue))
        except ExceptionGroup as group_error:
            raise group_error.exceptions[0] from None

    async def _target(
        self, target: Target, turn: int, columns: dict[str, list[Any]], made: Outcomes, pool: PoolWriter,
        processor: ImageProcessor | SandboxedProcessor,
    ) -> None:  # fmt: skip
        """Fetch one URL and end every row that shares it."""
        reasons: Reasons = {}
        values: dict[str, Any] = {}
        signals: list[dict[str, Any]] = []
        image: Processed | None = None
        try:
            for row in target.rows:
                if matched := self._blocklist.url(columns["url"][row]):
                    reasons[row] = matched
            if len(reasons) < len(target.rows):
                async with self._fetcher.fetch(target.fetch_url, turn) as fetched:
                    values, signals = _fetch_values(fetched)
                    if fetched.reason is not None:
                        reasons.update(
                            {row: (fetched.reason, fetched.detail) for row in target.rows if row not in reasons}
                        )
                    else:
                        work = partial(self._process, fetched, target, columns, reasons, values, processor)
                        image = await asyncio.get_running_loop().run_in_executor(self._threads, work)
                        told, signals = _fetch_values(fetched)  # again: bytes may speak of consent too
                        values.update(told)
        except Exception as error:
            log.exception("internal error at %s", target.fetch_url)
            reasons = {row: ("internal", f"{type(error).__name__}: {error}"[:500]) for row in target.rows}
        if image is not None:
            # Outside the `try`: a disk that is full ends the attempt, not the row.
            member = pool.add(f"{columns['uid'][target.rows[0]]}.{image.extension}", image.data)
            values["pool_offset"], values["pool_size"], values["pool_sha256"] = member
            fault_point("mid-pool")
        for row in target.rows:
            reason, detail = reasons.get(row, (None, None))
            own = dict(values)
            if reason is not None:
                own = {name: value for name, value in own.items() if not name.startswith("pool_")}
                own["detail"] = detail
            if is_withdrawn(reason, detail):
                own = {name: value for name, value in own.items() if name not in OF_THE_IMAGE}
            own["url_md5"] = hashlib.md5(columns["url"][row].encode(), usedforsecurity=False).hexdigest()
            made.set(row, reason, own)
            for signal in signals:
                made.consent(row, signal)

    def _process(
        self, fetched: Fetched, target: Target, columns: dict[str, list[Any]], reasons: Reasons,
        values: dict[str, Any], processor: ImageProcessor | SandboxedProcessor,
    ) -> Processed | None:  # fmt: skip
        """Hash, check and decode one body (in a decode thread); None where no row can use the image."""
        settings = self._settings
        assert fetched.body is not None
        self._checks.body(fetched, target.rows, columns, reasons, values)
        if len(reasons) == len(target.rows):
            return None
        boxes = None
        if settings.bbox_col:
            boxes = [box for row in target.rows for box in json.loads(columns[settings.bbox_col][row] or "[]")]
        try:
            image = processor(fetched.body, boxes)
        except ImageError as error:
            for row in target.rows:
                reasons.setdefault(row, (error.reason, error.detail))
            return None
        values.update(
            format=image.format, original_width=image.original_width, original_height=image.original_height,
            width=image.width, height=image.height, exif=image.exif,
        )  # fmt: skip
        return image if self._checks.image(image.data, target.rows, reasons) else None

    def _commit(
        self, attempt: Attempt, upstream: UnitRecord, made: Outcomes, pool: PoolWriter, scratch: Path,
        kept: list[FileEntry],
    ) -> UnitRecord:  # fmt: skip
        outputs = []
        if pool.members:
            outputs.append(Output("pool", pool.path, pool.members))
            made.in_pool(f"{self._folder.base}/pool/{attempt.unit}.{attempt.generation}.{attempt.number}.tar")
        for name, table in (("outcomes", made.table()), ("consent", made.consent_table())):
            pq.write_table(table, scratch / f"{name}.parquet", compression="zstd")
            outputs.append(Output(name, scratch / f"{name}.parquet", table.num_rows))
        digest = hashlib.sha256("".join(entry.sha256 for entry in upstream.files).encode()).hexdigest()
        return self._folder.commit(
            attempt, outputs, count(*made.statuses()), rows=len(made), input_digest=digest, keep=kept
        )


def _fetch_values(fetched: Fetched) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """An outcome's columns about the fetch, and the consent table's rows without their uid."""
    denied = any(signal.verdict == "deny" for signal in fetched.signals)
    values = {
        "detail": fetched.detail, "http_status": fetched.http_status, "final_url": fetched.final_url,
        "content_type": fetched.content_type, "attempts": fetched.attempts, "fetch_ms": fetched.fetch_ms,
        "fetched_at": fetched.fetched_at, "consent_ok": not denied if fetched.evaluated else None,
        "consent_signals": ",".join(fetched.evaluated) or None,
    }  # fmt: skip
    signals = [
        {"signal": signal.signal, "value": signal.value, "source": signal.source, "verdict": signal.verdict,
         "rule_version": signal.rule_version, "observed_at": fetched.fetched_at}
        for signal in fetched.signals
    ]  # fmt: skip
    return values, signals
