"""python -m jobs.look ROOT --where SQL --out page.html: a seeded sample of rows, with image, text and verdict."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import DONE, Parser, positive, run_main
from pipeline.errors import InputError
from pipeline.look.look import look


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.look", description="See rows: image, text and what was decided about them.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument("--where", default="true", metavar="SQL", help="a condition on a row; default: every row")
    parser.add_argument("-n", default=64, type=positive, metavar="N", dest="count", help="rows or groups; default: 64")
    parser.add_argument("--seed", default=0, type=int, metavar="S", help="another seed takes other rows; default: 0")
    parser.add_argument("--groups", action="store_true", help="duplicates beside the row that stayed instead of them")
    parser.add_argument("--by", metavar="COLUMN", help="rows that have this number, the lowest first, labelled with it")
    parser.add_argument("--deciles", action="store_true", help="with --by: some rows of each tenth of its values")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE", help="page.html, or sheet.png")
    flags = parser.parse_args(argv)
    if flags.deciles and not flags.by:
        parser.error("--deciles goes with --by COLUMN")
    if flags.by and flags.groups:
        parser.error("--by goes without --groups")
    return run_main("pairmill look", lambda: _look(flags))


def _look(flags: argparse.Namespace) -> int:
    out: Path = flags.out
    if out.suffix not in (".html", ".png"):
        raise InputError(f"--out {out}: give a name that ends in .html or .png")
    if not out.absolute().parent.is_dir():
        raise InputError(f"--out {out}: there is no folder {out.absolute().parent}")
    shown, data = look(
        flags.root, flags.where, flags.count, flags.seed, flags.groups, out.suffix, flags.by, flags.deciles
    )
    draft = out.with_name(f".{out.name}")
    draft.write_bytes(data)
    draft.rename(out)
    what = "group" if flags.groups else "row"
    print(f"{out}: {shown:,} {what}{'' if shown == 1 else 's'}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
