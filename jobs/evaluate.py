"""python -m jobs.evaluate --model DIR --suite S --out DIR [--compare RUN...]: a CLIP measured as its paper measures."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import DONE, Parser, run_main
from pipeline.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m jobs.evaluate",
        description="Measure a CLIP on local datasets: DIR/results.parquet, results.csv, report.html.",
    )
    parser.add_argument("--model", required=True, metavar="DIR", help="of jobs.train, or weights as embed takes")
    parser.add_argument("--arch", metavar="A", help="open_clip architecture, where the weights do not say it")
    parser.add_argument("--suite", required=True, metavar="S", help="path, or the name of a shipped suite")
    parser.add_argument("--out", required=True, metavar="DIR", help="results; features are kept in it for other runs")
    parser.add_argument("--data", metavar="DIR", help="where the suite's datasets lie")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="tasks of the suite; default: all")
    parser.add_argument("--overlaps", metavar="T", help="a build's overlaps table: measure seen test images apart")
    parser.add_argument("--compare", nargs="+", default=[], metavar="RUN", help="folders of other runs, set beside it")
    flags = parser.parse_args(argv)
    return run_main("pairmill evaluate", lambda: _evaluate(flags))


def _evaluate(flags: argparse.Namespace) -> int:
    try:
        import scipy  # noqa: F401 - said at once, not after an hour of images

        from pipeline.evaluate.results import summary
        from pipeline.evaluate.run import Request, run
    except ModuleNotFoundError as error:
        raise InputError(f"evaluation needs {error.name}: pip install 'pairmill[evaluate]'") from None
    request = Request(
        flags.model, flags.suite, Path(flags.out), flags.arch, flags.data, tuple(flags.only), flags.overlaps,
        tuple(flags.compare),
    )  # fmt: skip
    made = run(request)
    for line in summary([made.table()]):
        row = line["run 0"]
        assert isinstance(row, dict)
        interval = "" if row["ci_low"] is None else f"  {row['ci_low']:.4f} to {row['ci_high']:.4f}"
        value = f"     –  {row['note']}" if row["value"] is None else f"{row['value']:.4f}{interval}  n={row['n']}"
        print(f"{row['task']:32} {row['setting']:20} {row['metric']:16} {value}")
    print(f"{request.out / 'report.html'}: {len(made.rows)} numbers, in results.parquet and results.csv beside it")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
