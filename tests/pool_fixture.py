"""Writes what `download` leaves behind, by hand: a pool of real images with their outcomes, for stages that read it."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.dedupe.stage import needs_hashes, run_dedupe, run_hashes
from pipeline.select.stage import run_select
from pipeline.stop import StopFlag
from pipeline.storage import LocalStore, Store
from pipeline.units import Output, StageFolder, count
from schemas.recipe import Recipe, parse_recipe
from schemas.records import UnitRecord
from schemas.tables import OUTCOMES

FETCHED = datetime(2026, 1, 1, tzinfo=UTC)
FORMATS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}


def picture(seed: int, extension: str = "jpg", side: int = 16) -> bytes:
    """A small image that no other seed makes."""
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side + seed % 5, 3), np.uint8)
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, FORMATS[extension])
    return data.getvalue()


def uid_of(number: int) -> str:
    url, text = url_of(number), caption_of(number)
    return hashlib.sha256(f"{url}\x1f{text}".encode()).hexdigest()[:32]


def url_of(number: int) -> str:
    return f"http://host{number % 7}.test/{number}.jpg"


def caption_of(number: int) -> str:
    return f"a picture, numbered {number}: 猫 ‘é’"


def exif_of(number: int) -> str | None:
    """One image in ten has EXIF."""
    return None if number % 10 else '{"Image Make": "Camera"}'


def curate(pool: "Pool", recipe: Recipe | None = None, run: str = "run") -> dict[str, StageFolder]:
    """Run `dedupe` (by default without a level) and `select` on the pool; returns the folders of all stages so far."""
    recipe = recipe or parse_recipe({"dedupe": {"levels": {}}}, "test")
    folders = {"download": pool.folder}
    stop = StopFlag(pool.store.uri, run)
    for stage, work in (("hashes", run_hashes), ("dedupe", run_dedupe), ("select", run_select)):
        if stage != "hashes" or needs_hashes(recipe.dedupe):
            folders[stage] = StageFolder(pool.store, stage, f"{stage[0]}0")
            work(pool.store, recipe, folders, folders[stage], run, stop, lambda result: None)
    return folders


class Pool:
    """A download stage's folder. Rows are numbered over the whole pool; the number determines everything in the row."""

    def __init__(self, root: Path | Store, fingerprint: str = "d0") -> None:
        self.store: Store = LocalStore(root) if isinstance(root, Path) else root
        self.folder = StageFolder(self.store, "download", fingerprint)
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._images: dict[int, bytes] = {}
        self._sizes: dict[int, tuple[int, int]] = {}

    def unit(
        self, name: str, numbers: range, failed: AbstractSet[int] = frozenset(), extension: str = "jpg", side: int = 16,
        kept: dict[str, str] | None = None, images: Mapping[int, bytes] | None = None,
        texts: Mapping[int, str] | None = None, sizes: Mapping[int, tuple[int, int]] | None = None,
    ) -> UnitRecord:  # fmt: skip
        """Commit generation 0 of a unit; `failed` numbers ended as timeouts; `kept` are src_* columns, by name.

        `images`, `texts` and `sizes` (original width and height) replace what the number gives.
        """
        rows = [self._row(name, number, kept or {}) for number in numbers]
        self._images.update(images or {})
        self._sizes.update(sizes or {})
        for row in rows:
            row["text"] = row["caption"] = (texts or {}).get(row["number"], row["text"])
        return self._commit(name, 0, rows, [row for row in rows if row["number"] not in failed], extension, side)

    def retry(self, name: str, cured: set[int], extension: str = "jpg", side: int = 16) -> UnitRecord:
        """Commit the unit's next generation, in which the `cured` numbers are ok."""
        record = self.folder.record(name, self.folder.generations()[name])
        rows = [dict(row) for row in self._rows[name]]
        return self._commit(
            name, record.generation + 1, rows, [row for row in rows if row["number"] in cured], extension, side, record
        )

    def _row(self, unit: str, number: int, kept: dict[str, str]) -> dict[str, Any]:
        return {
            "number": number, "uid": uid_of(number), "source": "list.csv", "source_row": number,
            "batch": unit.split("-")[0], "url": url_of(number), "text": caption_of(number),
            "caption": caption_of(number), "status": "failed", "reason": "timeout", "unit": unit, "generation": 0,
            **{f"src_{name}": f"{value}{number}" for name, value in kept.items()},
        }  # fmt: skip

    def _commit(
        self, name: str, generation: int, rows: list[dict[str, Any]], fetched: list[dict[str, Any]], extension: str,
        side: int, before: UnitRecord | None = None,
    ) -> UnitRecord:  # fmt: skip
        attempt = self.folder.begin(name, generation, "fixture", alone=False)
        scratch = self.store.scratch()
        members = self._write_pool(scratch / "pool.tar", fetched, extension, side)
        path = f"{self.folder.base}/pool/{name}.{generation}.{attempt.number}.tar"
        for row, member in zip(fetched, members, strict=True):
            row.update(member, pool_file=path, generation=generation, status="ok", reason=None)
            row["fetched_at"] = FETCHED + timedelta(seconds=row["number"])
        self._rows[name] = rows
        kept = [column for column in rows[0] if column.startswith("src_")] if rows else []
        schema = pa.schema([*OUTCOMES, *(pa.field(column, pa.string()) for column in kept)])
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), scratch / "outcomes.parquet")
        outputs = [Output("outcomes", scratch / "outcomes.parquet", len(rows))]
        if fetched:
            outputs.append(Output("pool", scratch / "pool.tar", len(fetched)))
        counts = count([row["status"] for row in rows], [row["reason"] for row in rows])
        keep = [entry for entry in before.files if entry.table == "pool"] if before else []
        return self.folder.commit(attempt, outputs, counts, len(rows), "fixture", keep)

    def _write_pool(
        self, path: Path, rows: list[dict[str, Any]], extension: str, side: int
    ) -> list[dict[str, Any]]:  # fmt: skip
        members = []
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row in rows:
                data = self._images.get(row["number"]) or picture(row["number"], extension, side)
                original = self._sizes.get(row["number"], (640, 480))
                info = tarfile.TarInfo(f"{row['uid']}.{extension}")
                info.size = len(data)
                offset = tar.offset + tarfile.BLOCKSIZE
                tar.addfile(info, io.BytesIO(data))
                digest = hashlib.sha256(data).hexdigest()
                members.append({
                    "pool_offset": offset, "pool_size": len(data), "pool_sha256": digest, "bytes": len(data),
                    "sha256": digest, "format": FORMATS[extension].lower(), "width": side + row["number"] % 5,
                    "height": side, "original_width": original[0], "original_height": original[1], "http_status": 200,
                    "attempts": 1, "exif": exif_of(row["number"]),
                })  # fmt: skip
        return members
