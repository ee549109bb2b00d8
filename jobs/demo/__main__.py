"""python -m jobs.demo: start the embedded web, build a training set from it, show it, verify it, draw it."""

import argparse
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from jobs.demo.outcomes import a_uid, differences, ended, newest_folder
from jobs.demo.web import Web

HTTP_PORT, HTTPS_PORT = 18480, 18443
"""Fixed, so that a second run has the same URLs and finds its work done."""

DRAWN = "kept AND regexp_full_match(caption, '[ -~]+')"
"""Rows of the contact sheet: Pillow's own font has no letters beyond Latin."""


def main(argv: Sequence[str] | None = None) -> int:
    """Exit code 0 where every row ended as the web means it to; else that of what failed."""
    parser = argparse.ArgumentParser(prog="python -m jobs.demo", description=__doc__)
    parser.add_argument("--output", default="demo-output", type=Path, metavar="FOLDER", help="default: demo-output")
    parser.add_argument("--rows", default=8000, type=int, metavar="N", help="rows of the list, from 400; default: 8000")
    parser.add_argument("--http-port", default=HTTP_PORT, type=int, metavar="PORT")
    parser.add_argument("--https-port", default=HTTPS_PORT, type=int, metavar="PORT")
    flags = parser.parse_args(argv)
    if flags.rows < 400:
        parser.error(f"--rows {flags.rows}: fewer than 400 cannot hold every kind of failure")
    began = time.monotonic()
    web = Web(flags.output / "web", flags.rows, 0, flags.http_port, flags.https_port)
    try:
        web.start()
    except OSError as error:
        print(f"python -m jobs.demo: {error}; --http-port and --https-port choose others", file=sys.stderr)
        return 1
    try:
        web.compose_ahead()
        print(f"a web of {len(web.hosts)} hosts is up, with {len(web.pairs):,} pairs: {web.list_path}", flush=True)
        return _run(web, flags.output, began)
    finally:
        web.stop()


def _run(web: Web, output: Path, began: float) -> int:
    root = output / "root"
    recipe = output / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(_recipe(web), sort_keys=False, allow_unicode=True))
    steps = (
        ("build", "--recipe", str(recipe), "--input", str(web.list_path), "--output", str(root)),
        ("show", str(root)),
        ("show", str(root), "--column", "clip_score"),
        ("verify", str(root)),
        ("look", str(root), "--where", DRAWN, "-n", "40", "--out", str(output / "contact-sheet.png")),
    )
    for name, *arguments in steps:
        code = _job(name, arguments)
        if code:
            print(f"python -m jobs.{name} ended with exit code {code}", file=sys.stderr)
            return code
    endings = ended(root)
    wrong = differences(web.pairs, endings)
    for line in wrong[:20]:
        print(line, file=sys.stderr)
    print(f"{len(web.pairs) - len(wrong):,} of {len(web.pairs):,} rows ended as expected; "
          f"{web.canary()} connections to forbidden addresses")  # fmt: skip
    dataset = max(root.glob("shard/*/dataset"), key=lambda path: path.stat().st_mtime)
    _say_where(output, root, dataset, time.monotonic() - began)
    return 1 if wrong or web.canary() else 0


def _recipe(web: Web) -> dict[str, Any]:
    """The shipped demo recipe, with what it takes to reach this web."""
    recipe: dict[str, Any] = yaml.safe_load((files("jobs.recipes") / "demo.yaml").read_text("utf-8"))
    for section, settings in web.recipe.items():
        recipe.setdefault(section, {}).update(settings)
    return recipe


def _job(name: str, arguments: Sequence[str]) -> int:
    here = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    began = time.monotonic()
    print(f"\n$ python -m jobs.{name} {shlex.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, "-m", f"jobs.{name}", *arguments], env={**os.environ, "PYTHONPATH": path})
    print(f"({time.monotonic() - began:.0f} s)", flush=True)
    return done.returncode


def _say_where(output: Path, root: Path, dataset: Path, seconds: float) -> None:
    python = os.path.relpath(sys.executable) if Path(sys.executable).is_relative_to(Path.cwd()) else sys.executable
    table = f"'{newest_folder(root, 'outcomes')}/*.parquet'"
    query = f"SELECT status, reason, count(*) AS n FROM {table} GROUP BY ALL ORDER BY n DESC"
    print(f"""
done in {seconds:.0f} s. The encoder is untrained: its scores, and what select took by them, mean nothing yet.
  training set   {dataset}
  tables         {root / "tables"}
  contact sheet  {output / "contact-sheet.png"}

next:
  {python} -m jobs.look {root} --where "status <> 'ok'" --out {output / "turned-away.html"}
  {python} -m jobs.look {root} --groups --out {output / "duplicates.html"}
  {python} -m jobs.show {root} --slices
  {python} -m jobs.look {root} --by clip_score --deciles --out {output / "deciles.html"}
  {python} -m jobs.show {root} --column original_width
  {python} -m jobs.trace {root} --uid {a_uid(root)}
  {python} -c "import duckdb; duckdb.sql(\\"{query}\\").show()"
""")


if __name__ == "__main__":
    sys.exit(main())
