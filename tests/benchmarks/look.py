"""jobs.look as its user waits for it: whole processes on a made-up ROOT of many units, or on a ROOT given by path.

    python -m tests.benchmarks.look [FOLDER [ROWS]]      default: a temporary folder, 2,000,000 rows

200 units' pool tars, tables of ROWS rows with decisions and duplicates, 64 rows or groups a page. The aim is 3 s.
"""

import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline.tables import ROW_GROUP_ROWS
from schemas.records import Published, PublishedFile, now
from schemas.tables import DECISIONS, DUPLICATES, OUTCOMES, PAIRS, REJECTS, SCORES

UNITS, IMAGES = 200, 20
WHERE = {
    "status = 'ok'": [],
    "NOT kept AND pass_words": [],
    "lang = 'de' AND n_words < 4": [],
    "sha256 LIKE '0000%'": [],
    "status = 'failed' AND caption LIKE '%fox%'": [],
    "level = 'perceptual'": ["--groups"],
    "true": ["--by", "clip_score", "--deciles"],
    "kept": ["--by", "clip_score_l14", "--deciles"],
    "lang = 'de'": ["--by", "clip_score"],
}
"""Conditions that match half of the rows, some, and some 30 of 2 million; the last over scores of two encoders."""


def make_pool(root: Path) -> list[tuple[str, int, int, str]]:
    """Tars of photo-like images of about 15 KB; (pool_file, offset, size, sha256) of each."""
    chance = np.random.default_rng(0)
    places = []
    for unit in range(UNITS):
        path = f"download/{'0' * 16}/pool/0001-{unit:07d}.0.1.tar"
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        with tarfile.open(root / path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in range(IMAGES):
                small = Image.fromarray(chance.integers(0, 256, (24, 32, 3), np.uint8))
                data = io.BytesIO()
                small.resize((341, 256), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
                info = tarfile.TarInfo(f"{number}.jpg")
                info.size = data.tell()
                data.seek(0)
                places.append((path, tar.offset + 512, info.size, hashlib.sha256(data.getvalue()).hexdigest()))
                tar.addfile(info, data)
    return places


def make_root(root: Path, rows: int) -> None:
    places = make_pool(root)
    chance = np.random.default_rng(1)
    uids = np.sort(np.frombuffer(chance.bytes(16 * rows), "S16"))
    hex_ = np.char.encode([uid.ljust(16, b"\0").hex() for uid in uids.tolist()]).astype(str)
    words = np.array(["a red fox", "photo", "night", "harbour", "by the sea", "flag of", "sunset", "mountain"])
    texts = np.char.add(np.char.add(chance.choice(words, rows), " "), chance.choice(words, rows))
    ok = chance.random(rows) < 0.6
    place = chance.integers(0, len(places), rows)
    columns: dict[str, Any] = {
        "uid": hex_, "url": np.char.add("https://h.example/", hex_), "text": texts, "caption": texts,
        "source": np.full(rows, "/data/l.parquet"), "source_row": np.arange(rows), "batch": np.full(rows, "0001"),
        "status": np.where(ok, "ok", "failed"), "reason": np.where(ok, None, "timeout"),
        "sha256": np.array([hashlib.sha256(uid).hexdigest() for uid in uids.tolist()]),
        "pool_file": np.where(ok, np.array([one[0] for one in places])[place], None),
        "pool_offset": np.array([one[1] for one in places])[place],
        "pool_size": np.array([one[2] for one in places])[place],
        "pool_sha256": np.array([one[3] for one in places])[place],
        "n_words": chance.integers(1, 12, rows), "lang": chance.choice(["en", "de", "fr", "und"], rows),
        "width": np.full(rows, 341), "height": np.full(rows, 256), "bytes": np.full(rows, 90_000),
        "original_width": np.full(rows, 1365), "original_height": np.full(rows, 1024),
    }  # fmt: skip
    kept = chance.random(rows) < 0.8
    passed = kept | (chance.random(rows) < 0.5)
    dropped = np.flatnonzero(ok & ~kept & passed)
    decisions = {"uid": hex_[ok], "kept": kept[ok], "dropped_by": np.where(passed, "duplicate", "words")[ok],
                 "pass_words": passed[ok]}  # fmt: skip
    level = np.where(chance.random(len(dropped)) < 0.1, "perceptual", "bytes")
    witness = hex_[chance.choice(np.flatnonzero(ok & kept), len(dropped))]
    duplicates = {"uid": hex_[dropped], "dup_of": witness, "level": level, "distance": np.full(len(dropped), 7.0)}
    publish(root, "outcomes", OUTCOMES, columns)
    publish(root, "pairs", PAIRS, columns)
    publish(root, "decisions", DECISIONS.append(pa.field("pass_words", pa.bool_())), decisions)
    publish(root, "duplicates", DUPLICATES, duplicates)
    scored = np.repeat(hex_[ok], 2)
    scores = {"uid": scored, "encoder": np.tile(["b32", "l14"], len(scored) // 2),
              "clip_score": chance.normal(0.2, 0.1, len(scored)).astype(np.float32)}  # fmt: skip
    publish(root, "scores", SCORES, scores)
    publish(root, "rejects", REJECTS, {})
    (root / "run.json").write_text("{}")


def publish(root: Path, name: str, schema: pa.Schema, columns: dict[str, Any]) -> None:
    rows = len(columns["uid"]) if columns else 0
    nulls = {field.name: pa.nulls(rows, field.type) for field in schema}
    arrays = {field.name: pa.array(columns[field.name], field.type, from_pandas=True)
              for field in schema if field.name in columns}  # fmt: skip
    path = f"tables/{name}/v1/part-00000.parquet"
    (root / path).parent.mkdir(parents=True)
    table = pa.table({**nulls, **arrays}, schema=schema)
    pq.write_table(table, root / path, compression="zstd", row_group_size=ROW_GROUP_ROWS)
    file = PublishedFile(path=path, bytes=os.path.getsize(root / path), sha256="0" * 64, rows=rows)
    latest = Published(version=1, files=[file], rows=rows, written_at=now(), made_from={})
    (root / "tables" / name / "latest.json").write_bytes(latest.to_bytes())


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(folder) / "root"
        rows = int(sys.argv[2]) if len(sys.argv) > 2 else 2_000_000
        if not root.exists():
            make_root(root, rows)
        print(f"{'seconds':>8} {'CPU':>6} {'page':>8}  condition")
        for where, flags in WHERE.items():
            for suffix in ("html", "png") if where.startswith("status = 'ok'") else ("html",):
                out = Path(folder) / f"page.{suffix}"
                command = [sys.executable, "-m", "jobs.look", str(root), "--where", where, *flags, "--out", str(out)]
                begun, cpu = time.perf_counter(), os.times()
                done = subprocess.run(command, capture_output=True, text=True)
                seconds, after = time.perf_counter() - begun, os.times()
                used = after.children_user + after.children_system - cpu.children_user - cpu.children_system
                told = done.stdout.rpartition(": ")[2].strip() or done.stderr.strip()[:60]
                size = out.stat().st_size / 1e6 if out.exists() else 0
                by = " ".join(flags)
                print(f"{seconds:>8.2f} {used:>6.2f} {size:>5.1f} MB  {where} {by} ({told}, {suffix})", flush=True)


if __name__ == "__main__":
    main()
