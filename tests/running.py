"""Runs jobs as their users do: as processes, on a real ROOT, against the embedded web."""

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

REPOSITORY = Path(__file__).parent.parent


def job(name: str, *arguments: object, env: Mapping[str, str] | None = None, timeout: float = 240) -> Any:
    """`python -m jobs.<name>` to its end; stdout and stderr are text."""
    return subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)],
        cwd=REPOSITORY, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=timeout, check=False,
    )  # fmt: skip


def start(name: str, *arguments: object, env: Mapping[str, str] | None = None) -> "subprocess.Popen[str]":
    """The same, left running; its output goes to pipes that nobody needs to read before it ends."""
    return subprocess.Popen(
        [sys.executable, "-m", f"jobs.{name}", *map(str, arguments)],
        cwd=REPOSITORY, env={**os.environ, **(env or {})}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def write_recipe(path: Path, web_recipe: dict[str, Any], **sections: dict[str, Any]) -> Path:
    """A recipe file: the web's own settings (hosts, certificates, address range) with sections laid over.

    Without a level of `dedupe`, unless `sections` has one: every ok row becomes a sample.
    """
    merged: dict[str, Any] = {"dedupe": {"levels": {}}} | {name: dict(section) for name, section in web_recipe.items()}
    for name, section in sections.items():
        merged[name] = {**merged.get(name, {}), **section}
    path.write_text(yaml.safe_dump(merged))
    return path


def table(root: Path, name: str) -> pa.Table:
    """A published table's current version."""
    latest = json.loads((root / "tables" / name / "latest.json").read_text())
    if name == "embeddings":  # listed, not copied
        return pa.concat_tables([pq.read_table(root / file["path"]) for file in latest["files"]])
    return pq.read_table(root / "tables" / name / f"v{latest['version']}")


def endings(root: Path) -> dict[tuple[str, int], tuple[str, str | None]]:
    """(source, source_row) → (status, reason) of every input row; fails where a row ended twice."""
    found: dict[tuple[str, int], tuple[str, str | None]] = {}
    for name in ("outcomes", "rejects"):
        rows = table(root, name).select(["source", "source_row", "status", "reason"]).to_pylist()
        for row in rows:
            key = (row["source"], row["source_row"])
            assert key not in found, f"{key} ended twice"
            found[key] = (row["status"], row["reason"])
    return found


def stage_folder(root: Path, stage: str) -> Path:
    """The only fingerprint's folder of a stage."""
    (folder,) = (root / stage).iterdir()
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, int]]:
    """File → (mtime, size), below a folder."""
    return {str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.stat().st_size)
            for path in sorted(folder.rglob("*")) if path.is_file()}  # fmt: skip


def more_hits(before: Mapping[str, int], after: Mapping[str, int]) -> dict[str, int]:
    """URLs requested since, robots.txt aside."""
    extra = Counter(after)
    extra.subtract(before)
    return {url: count for url, count in extra.items() if count and not url.endswith("/robots.txt")}
