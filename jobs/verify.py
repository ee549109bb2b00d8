"""python -m jobs.verify ROOT: proves the invariants from the files; exits 1 on any breach."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from jobs.arguments import DONE, FAILED, Parser, run_main
from pipeline.root import open_root
from pipeline.verify.report import SHOWN, Report
from pipeline.verify.run import verify


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.verify", description="Prove the invariants of a ROOT from its files.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="records, sizes and keys; hash no bytes")
    extent.add_argument("--sample", type=_share, metavar="F", help="hash this share of the files, the same each time")
    flags = parser.parse_args(argv)
    share = 0.0 if flags.quick else 1.0 if flags.sample is None else flags.sample
    return run_main("pairmill verify", lambda: _verify(flags.root, share, flags.json))


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share above 0 and up to 1")
    return share


def _verify(uri: str, share: float, as_json: bool) -> int:
    report = verify(open_root(uri), share)
    if as_json:
        print(json.dumps({**asdict(report), "breaches": report.breaches}, indent=1, ensure_ascii=False))
    else:
        _print(report)
    return FAILED if report.breaches else DONE


def _print(report: Report) -> None:
    for check in sorted(report.checks, key=lambda check: check.invariant):
        for breach in check.first:
            print(f"breach of invariant {check.invariant}: {breach}")
        if check.breaches > SHOWN:
            print(
                f"breach of invariant {check.invariant}: … and {check.breaches - len(check.first):,} more: {check.name}"
            )
    width = max((len(check.name) for check in report.checks), default=0) + 2
    for check in sorted(report.checks, key=lambda check: check.invariant):
        verdict = "ok" if not check.breaches else f"{check.breaches:,} breaches"
        print(f"invariant {check.invariant}: {check.name + ':':<{width}} {check.checked:>12,} checked, {verdict}")
    for note in report.notes:
        print(f"note: {note}")
    print(f"{report.root}: " + (f"{report.breaches:,} breaches" if report.breaches else "verified"))


if __name__ == "__main__":
    sys.exit(main())
