"""A run: the stages in order on one ROOT, under its lease, with a record of what was asked and what came of it."""

import contextlib
import getpass
import logging
import os
import platform
import signal
import socket
import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from types import FrameType
from typing import TYPE_CHECKING

from pipeline.check import check_adopted, check_recipe, check_rules, check_scored
from pipeline.cluster import connect_ahead, job_id, release, shutdown
from pipeline.dedupe.stage import FEW as FEW_HASHED
from pipeline.dedupe.stage import hashes_due, needs_hashes, run_dedupe, run_hashes
from pipeline.download.stage import retry_download, run_download
from pipeline.errors import InputError
from pipeline.export.rebuilt import rebuilt, told
from pipeline.funnel import funnel
from pipeline.gates import accepted_batches, failed_gates
from pipeline.ingest.stage import make_batches, run_ingest
from pipeline.lease import Lease
from pipeline.progress import Progress
from pipeline.retract.run import finish
from pipeline.root import encoder_name, read_batches
from pipeline.rounds import pending_rows
from pipeline.select.stage import run_select
from pipeline.shard.stage import FEW, expected, run_shard
from pipeline.stages import STAGES, encoder_of, has_stage, read_by, stage_folders
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store, open_store
from pipeline.tables import publish
from pipeline.units import StageFolder, fingerprints
from schemas.recipe import PER_ENCODER, Recipe
from schemas.records import Batch, RunRecord, now

if TYPE_CHECKING:
    from pipeline.adopt.stage import Adoption

log = logging.getLogger(__name__)

SET_LEVEL = {"hashes": run_hashes, "dedupe": run_dedupe, "select": run_select, "shard": run_shard}
"""Stages that read all of the pool, whatever batch brought it; `hashes` runs where `dedupe` needs it."""

GRACE_S = 20.0
"""Seconds after SIGTERM in which units under way may still commit."""


@dataclass(frozen=True)
class Request:
    """What a user asked for."""

    recipe: Recipe
    root: str
    inputs: list[str] = field(default_factory=list)
    stages: tuple[str, ...] = STAGES
    limit: int | None = None
    readmit: str | None = None
    retry: tuple[str, ...] = ()
    accept: tuple[str, ...] = ()
    adopt: "Adoption | None" = None
    """A download to take over instead of fetching."""
    command: tuple[str, ...] = ()


def build(request: Request) -> int:
    """Run the request to its end. Returns the exit code: 0 done, 1 stopped, 3 a gate failed.

    Raises InputError (bad recipe or input), HeldError (another run holds the ROOT), OSError (the store).
    """
    store = open_store(request.root)
    store.check()
    check_recipe(request.recipe)
    run = f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    with Lease.acquire(store, run, on_lost=lambda: leave(store.uri)) as lease:
        if isinstance(store, LocalStore):
            store.clear_scratch()
        if finish(store, lease.check):
            log.info("the retraction that was cut short is finished")
        return _Run(request, store, run, lease).go()


def leave(root: str) -> None:
    """Stop at once, writing nothing more: another run has the ROOT now. Workers of an embedded Ray end with us."""
    log.error("pairmill build: %s: this run has lost its lease to another run, and stops", root)
    os._exit(1)


class _Run:
    def __init__(self, request: Request, store: Store, run: str, lease: Lease) -> None:
        self._request = request
        self._recipe = request.recipe
        self._store = store
        self._run = run
        self._lease = lease
        self._stop = StopFlag(store.uri, run)
        self._folders = stage_folders(store, request.recipe)
        self._record = RunRecord(
            run=run, started_at=now(), command=list(request.command), who=getpass.getuser(),
            host=socket.gethostname(), ray_job=job_id(), recipe=request.recipe.model_dump(mode="json"),
            versions=versions(), stages={stage: folder.fingerprint for stage, folder in self._folders.items()},
            accepts=list(request.accept),
        )  # fmt: skip

    def go(self) -> int:
        signal.signal(signal.SIGTERM, self._terminate)
        signal.signal(signal.SIGINT, self._terminate)
        request = self._request
        batches = list(read_batches(self._store).values())
        known = {batch.batch for batch in batches}
        if unknown := sorted(set(request.accept) - known):
            raise InputError(f"--accept {unknown[0]}: no such batch; there are {', '.join(sorted(known)) or 'none'}")
        if request.adopt:
            from pipeline.adopt.stage import make_adopted

            make_adopted(self._store, self._recipe, request.adopt, self._run)
            batches = list(read_batches(self._store).values())
        else:
            check_scored(self._recipe, {name for batch in batches if batch.adopted for name in batch.adopted.scores})
            if "ingest" in request.stages:
                make_batches(self._store, self._recipe, request.inputs, request.limit, request.readmit, self._run)
                batches = list(read_batches(self._store).values())
                self._connect_ahead(batches)
        if not batches:
            raise InputError(f"output {self._store.uri}: has no batch yet; give --input")
        scores = {name for batch in batches if batch.adopted for name in batch.adopted.scores}
        kept = [name for batch in batches for name in batch.kept]
        check_rules(self._recipe, kept, sorted(scores))
        check_adopted(self._recipe, kept, scores)
        self._check_upstream()
        self._save()
        try:
            return self._run_stages(batches)
        except BaseException:
            self._save(finished_at=now(), exit_code=1)
            raise

    def _check_upstream(self) -> None:
        """A set-level stage that runs alone would find no row and publish empty tables as its result."""
        stage = self._request.stages[0]
        if not has_stage(self._recipe, stage):
            key = "embed.encoders" if stage == "embed" else "semantic.encoder"
            raise InputError(f"recipe {key}: is not given, so jobs.{stage} has nothing to do")
        if (reads := read_by(self._recipe, stage)) is None:
            return
        upstream = self._folders[reads]
        if upstream.completed() is None and not upstream.generations():
            raise InputError(
                f"output {self._store.uri}: has nothing from {upstream.stage} under these settings;"
                f" run jobs.{upstream.stage} or jobs.build with them first"
            )
        if stage in ("semantic", "select"):
            for key in [*self._encoder_keys("embed"), *self._encoder_keys("scores")]:
                if rows := self._rows_ahead(key, []):
                    made = "vectors" if key.startswith("embed/") else "scores"
                    told = f"{rows:,} rows have no {made} of {encoder_of(self._recipe, key).name} yet"
                    raise InputError(f"output {self._store.uri}: {told}; run jobs.embed or jobs.build first")

    def _connect_ahead(self, batches: Sequence[Batch]) -> None:
        """Where rows will be fetched, Ray starts while they are ingested."""
        done = self._folders["download"].generations()
        if "download" in self._request.stages and any(p.unit not in done for batch in batches for p in batch.units):
            connect_ahead(self._recipe)

    def _run_stages(self, batches: Sequence[Batch]) -> int:
        for stage in self._request.stages:
            if not has_stage(self._recipe, stage):
                continue
            if stage in ("embed", "semantic", "select"):
                self._scores(batches)  # rules may name them
            self._stage(stage, batches)
            if self._stop.is_set():
                return self._stopped()
            if stage == "download":
                self._scores(batches)
            if stage in ("download", "dedupe") and not self._needs_ray(stage):
                release()
        publish(self._store)
        return self._judge(batches)

    def _needs_ray(self, done: str) -> bool:
        """Whether a stage after `done` will have more rows than it takes in this process."""
        download, later = self._folders["download"], self._request.stages[self._request.stages.index(done) + 1 :]
        if "embed" in later and has_stage(self._recipe, "embed"):
            return True
        if "dedupe" in later and needs_hashes(self._recipe.dedupe):
            due = hashes_due(download, self._folders["hashes"])
            if sum(unit["rows"] for unit in due) >= FEW_HASHED:
                return True
        return "shard" in later and pending_rows(download, self._folders["select"]) >= FEW

    def _stage(self, stage: str, batches: Sequence[Batch]) -> None:
        """Run a stage's missing units and, unless stopped, say that it is complete. `stage` may be embed/<encoder>."""
        if stage == "dedupe" and needs_hashes(self._recipe.dedupe):
            self._stage("hashes", batches)
        if stage == "embed":
            for key in [key for own in PER_ENCODER for key in self._encoder_keys(own)]:
                if not self._stop.is_set():
                    self._stage(key, batches)
            return
        folder = self._folders[stage]
        reads = read_by(self._recipe, folder.stage)
        self._lease.check()
        store, recipe, run, stop = self._store, self._recipe, self._run, self._stop
        with Progress(stage, self._rows_ahead(stage, batches)) as progress:
            if stage == "ingest":
                run_ingest(store, recipe, batches, folder, run, stop, progress)
            elif folder.stage == "embed":
                from pipeline.embed.stage import run_embed

                run_embed(store, recipe, self._folders, encoder_of(recipe, stage), folder, run, stop, progress)
            elif folder.stage == "scores":
                from pipeline.scores.stage import run_scores

                run_scores(store, recipe, self._folders, encoder_of(recipe, stage), folder, run, stop, progress)
            elif stage == "semantic":
                from pipeline.semantic.stage import run_semantic

                run_semantic(store, recipe, self._folders, folder, run, stop, progress)
            elif run_set_level := SET_LEVEL.get(stage):
                run_set_level(store, recipe, self._folders, folder, run, stop, progress)
            elif self._request.adopt:
                from pipeline.adopt.stage import run_adopt

                run_adopt(store, recipe, batches, self._folders["ingest"], folder, run, stop, progress)
            elif self._request.retry:
                ingest = self._folders["ingest"]
                retry_download(store, recipe, batches, ingest, folder, run, stop, progress, self._request.retry)
            else:
                run_download(store, recipe, batches, self._folders["ingest"], folder, run, stop, progress)
        # A set-level stage is complete where what it reads is.
        read = self._folders["download" if reads or folder.stage in PER_ENCODER else stage].generations()
        if stop.is_set() or any(piece.unit not in read for batch in batches for piece in batch.units):
            return
        if reads and reads != "download":
            done = self._folders[reads].completed()
            if done is None or any(batch.batch not in done.batches for batch in batches):
                return
        if folder.stage in PER_ENCODER and self._rows_ahead(stage, batches):
            return
        self._lease.renew()
        others = (StageFolder(store, folder.stage, name).completed() for name in fingerprints(store, folder.stage)
                  if name != folder.fingerprint and self._rivals(folder, name))  # fmt: skip
        latest = max((done.finished_at for done in others if done), default=None)
        folder.complete(folder.iter_records(), [batch.batch for batch in batches], latest)

    def _encoder_keys(self, stage: str) -> list[str]:
        return [key for key in self._folders if key.startswith(f"{stage}/")]

    def _rivals(self, folder: StageFolder, fingerprint: str) -> bool:
        """Whether another folder of the stage could be current in this one's place: no other encoder's could."""
        if folder.stage not in PER_ENCODER:
            return True
        return encoder_name(StageFolder(self._store, folder.stage, fingerprint)) == encoder_name(folder)

    def _scores(self, batches: Sequence[Batch]) -> None:
        """The scores and vectors that came with adopted batches."""
        if not any(batch.adopted for batch in batches):
            return
        from pipeline.adopt.scores import complete_scores, run_scores

        folder = run_scores(self._store, batches, self._folders["download"], self._run, self._stop)
        if folder is not None:
            self._lease.renew()
            complete_scores(folder, batches)

    def _rows_ahead(self, stage: str, batches: Sequence[Batch]) -> int:
        folder = self._folders[stage]
        if stage == "hashes":
            return sum(unit["rows"] for unit in hashes_due(self._folders["download"], folder))
        if folder.stage == "embed":
            from pipeline.embed.stage import embed_due

            due = embed_due(self._store, self._recipe, self._folders, encoder_of(self._recipe, stage))
            return sum(unit["rows"] for unit in due)
        if folder.stage == "scores":
            from pipeline.scores.stage import scores_due

            return sum(unit["rows"] for unit in scores_due(self._folders, encoder_of(self._recipe, stage).name))
        if stage in ("dedupe", "semantic", "select"):
            return pending_rows(self._folders["download"], folder)
        if stage == "shard":
            return expected(self._recipe, self._folders, folder)["samples"]
        if stage == "download" and self._request.retry:
            ended = [reasons for record in folder.iter_records() for reasons in record.counts.values()]
            return sum(reasons.get(reason, 0) for reasons in ended for reason in self._request.retry)
        done = folder.generations()
        missing = {piece.unit: piece.rows for batch in batches for piece in batch.units if piece.unit not in done}
        if stage == "ingest" or not missing:
            return sum(missing.values())
        ingested = self._folders["ingest"].iter_records()
        return sum(sum(record.counts.get("ok", {}).values()) for record in ingested if record.unit in missing)

    def _judge(self, batches: Sequence[Batch]) -> int:
        rows = funnel(self._store, self._folders, batches)
        failed = failed_gates(self._recipe, rows, accepted_batches(self._store) | set(self._request.accept))
        for gate in failed:
            log.error("gate %s failed for batch %s: %s", gate["gate"], gate["batch"], gate["detail"])
        if failed:
            names = " ".join(f"--accept {name}" for name in sorted({str(gate["batch"]) for gate in failed}))
            log.error("results are written; once somebody has looked at them: %s", names)
        if again := rebuilt(self._record.recipe, batches, rows):
            log.info("%s", told(again))
        code = 3 if failed else 0
        self._save(finished_at=now(), funnel=rows, failed_gates=failed, exit_code=code)
        return code

    def _stopped(self) -> int:
        shutdown()
        for folder in self._folders.values():
            folder.withdraw_run(self._run)
        self._stop.lower()
        self._save(finished_at=now(), exit_code=1)
        log.info("stopped; what was finished is committed, and the same command goes on from there")
        return 1

    def _save(self, **changes: object) -> None:
        record = RunRecord.model_validate({**self._record.model_dump(), **changes})
        self._store.replace(f"runs/{self._run}.json", record.to_bytes())
        self._store.replace("run.json", record.to_bytes())

    def _terminate(self, _signal: int, _frame: FrameType | None) -> None:
        """SIGTERM or Ctrl-C: take no new unit, commit what finishes in time, drop the lease."""
        log.info("stopping; units under way have %.0f s to end", GRACE_S)
        threading.Thread(target=self._stop.raise_flag, daemon=True).start()
        timer = threading.Timer(GRACE_S, self._give_up)
        timer.daemon = True
        timer.start()

    def _give_up(self) -> None:
        self._stop.lower()
        self._save(finished_at=now(), exit_code=1)
        self._lease.release()
        log.info("stopped with units under way; the same command fetches those again")
        os._exit(1)


def versions() -> dict[str, str]:
    """Versions of what shapes results, for the run's record."""
    names = ("pairmill", "ray", "pyarrow", "duckdb", "pillow", "simplejpeg", "opencv-python-headless", "aiohttp")
    found = {"python": platform.python_version()}
    for name in names:
        with contextlib.suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
