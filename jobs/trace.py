"""python -m jobs.trace ROOT --uid U | --key K | --url U | --sha256 H: a row's story from input file to shard."""

import json
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from jobs.arguments import DONE, FAILED, Parser, run_main
from pipeline.root import open_root
from pipeline.trace import By, Trace


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.trace", description="Where a row came from and what became of it.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="print a JSON array, one object a matching row")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--uid", metavar="U", help="32 hex digits")
    which.add_argument("--key", metavar="K", help="a sample's key in the dataset")
    which.add_argument("--url", metavar="U", help="as given or as fetched")
    which.add_argument("--sha256", metavar="H", help="of the fetched bytes or the pool image")
    flags = parser.parse_args(argv)
    by: By = next(name for name in ("uid", "key", "url", "sha256") if getattr(flags, name) is not None)
    return run_main("pairmill trace", lambda: _trace(flags.root, by, getattr(flags, by), flags.json))


def _trace(uri: str, by: By, value: str, as_json: bool) -> int:
    stories = Trace(open_root(uri)).find(by, value)
    if not stories:
        print(f"pairmill trace: {uri}: no row has {by} {value}", file=sys.stderr)
        return FAILED
    if as_json:
        print(json.dumps(stories, indent=1, ensure_ascii=False, default=str))
        return DONE
    for number, story in enumerate(stories, 1):
        if len(stories) > 1:
            print(f"{'' if number == 1 else chr(10)}match {number} of {len(stories)}")
        print("\n".join(_lines(story, "")))
    return DONE


def _lines(value: dict[str, Any], indent: str) -> Iterator[str]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield f"{indent}{name}:"
            yield from _lines(inner, indent + "  ")
        elif isinstance(inner, list):
            yield f"{indent}{name}:" + ("" if inner else " none")
            for item in inner:
                lines = list(_lines(item, "")) if isinstance(item, dict) else [_text(item)]
                yield f"{indent}  - {lines[0]}"
                yield from (f"{indent}    {line}" for line in lines[1:])
        else:
            yield f"{indent}{name}: {_text(inner)}"


def _text(value: object) -> str:
    """Values come from the web: nothing in them may move the cursor or fake a line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(value))


if __name__ == "__main__":
    sys.exit(main())
