"""python -m jobs.show ROOT: the funnel, rows in and out of every stage by status and reason; or one column."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from jobs.arguments import Parser, run_main
from pipeline.columns import Column, read_column
from pipeline.export.rebuilt import told
from pipeline.root import open_root
from pipeline.slices import KINDS, By, Slice, read_slices
from pipeline.summary import Summary, summarise

BAR = 40


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.show", description="Rows in and out of every stage, by status and reason.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--column", metavar="C", help="quantiles and histogram, or top values, of a published column")
    parser.add_argument("--encoder", metavar="NAME", help="of a column of scores, this encoder alone; default: each")
    parser.add_argument("--slices", action="store_true", help="what each rule and level drops, where it bites most")
    parser.add_argument("--by", choices=KINDS, help="slices of this kind alone")
    flags = parser.parse_args(argv)
    if flags.by and not flags.slices:
        parser.error("--by goes with --slices")
    if flags.encoder and not flags.column:
        parser.error("--encoder goes with --column")
    if flags.column:
        return run_main("pairmill show", lambda: _show_column(flags.root, flags.column, flags.encoder, flags.json))
    if flags.slices:
        return run_main("pairmill show", lambda: _show_slices(flags.root, flags.by, flags.json))
    return run_main("pairmill show", lambda: _show(flags.root, flags.json))


def _show(uri: str, as_json: bool) -> int:
    found = summarise(open_root(uri))
    if as_json:
        print(json.dumps(asdict(found), indent=1, ensure_ascii=False))
    else:
        _print_funnel(_console(), found)
    return 0


def _show_column(uri: str, column: str, encoder: str | None, as_json: bool) -> int:
    found = read_column(open_root(uri), column, encoder)
    if as_json:
        told = [asdict(one) for one in found]
        of_encoders = found[0].encoder is not None
        shown = {one["encoder"]: one for one in told} if of_encoders else told[0]
        print(json.dumps(shown, indent=1, ensure_ascii=False))
        return 0
    console = _console()
    for one in found:
        _print_column(console, one)
    return 0


def _show_slices(uri: str, by: By | None, as_json: bool) -> int:
    found = read_slices(open_root(uri), [by] if by else KINDS)
    if as_json:
        told = {kind: [asdict(one) for one in slices] for kind, slices in found.items()}
        print(json.dumps(told, indent=1, ensure_ascii=False))
        return 0
    console = _console()
    for kind, slices in found.items():
        console.print(_slices(kind, slices))
    return 0


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=120)


def _slices(kind: str, slices: list[Slice]) -> Table:
    table = Table(title=f"by {kind}", title_justify="left")
    table.add_column("slice")
    for name in ("rows", "lost", "dropped", "kept"):
        table.add_column(name, justify="right")
    table.add_column("dropped by")
    for one in slices:
        # Names of hosts come from the web: nothing in them may move the cursor.
        host = "".join(char if char.isprintable() else "?" for char in one.name)
        name = f"{one.folded:,} other" if one.name == "other" else host
        by = ", ".join(f"{rule} {_share(rows, one.rows)}" for rule, rows in one.dropped.items())
        lost = _share(sum(one.lost.values()), one.rows)
        shares = (lost, f"{one.share_dropped:.1%}", f"{one.share_kept:.1%}")
        table.add_row(Text(name), f"{one.rows:,}", *shares, Text(by))
    return table


def _print_funnel(console: Console, found: Summary) -> None:
    batches = f"{len(found.batches)} batch" + ("" if len(found.batches) == 1 else "es")
    console.print(Text(f"{found.root}: {batches}, {found.input_rows:,} input rows"), soft_wrap=True)
    table = Table()
    table.add_column("stage")
    table.add_column("status")
    table.add_column("reason")
    table.add_column("rows", justify="right")
    table.add_column("share", justify="right")
    for stage in found.stages:
        table.add_section()
        table.add_row(stage.key, "in", "", f"{stage.rows_in:,}", "", style="bold")
        for row in stage.rows:
            style = "green" if row["status"] == "ok" else ""
            table.add_row(
                "", row["status"], row["reason"], f"{row['rows']:,}", _share(row["rows"], stage.rows_in), style=style
            )
        if stage.pending:
            table.add_row("", "pending", "", f"{stage.pending:,}", _share(stage.pending, stage.rows_in), style="yellow")
        table.add_row("", "out", "", f"{stage.rows_out:,}", _share(stage.rows_out, stage.rows_in), style="bold")
    console.print(table)
    if len(found.batches) > 1:
        console.print(_batches(found))
    for gate in found.failed_gates:
        console.print(Text(f"gate {gate['gate']} failed for batch {gate['batch']}: {gate['detail']}", style="red"))
    for stage in found.stages:
        if stage.finished_at is None:
            console.print(f"{stage.key} is not finished: run the build again and it goes on from here")
    for held in found.eval_sets:
        console.print(
            Text(
                f"evaluation set {held['eval_set']}: the pool holds at least {held['items_held']:,} of its "
                f"{held['items']:,} items, in {held['rows_held']:,} of {held['pool_rows']:,} rows (PDQ misses crops)"
            ),
            soft_wrap=True,
        )
    if found.rebuilt:
        console.print(Text(told(found.rebuilt)), soft_wrap=True)
    if found.dataset:
        pool = ", an index over the pool" if found.mode == "index" else ""
        console.print(
            Text(f"dataset: {found.dataset} ({found.samples:,} samples in {found.shards:,} shards{pool})"),
            soft_wrap=True,
        )


def _batches(found: Summary) -> Table:
    table = Table(title="ok rows by batch", title_justify="left")
    table.add_column("batch")
    table.add_column("input", justify="right")
    for stage in found.stages:
        table.add_column(stage.key, justify="right")
    for batch in found.batches:
        table.add_row(batch["batch"], f"{batch['rows']:,}", *(f"{batch['ok'].get(s.key, 0):,}" for s in found.stages))
    return table


def _print_column(console: Console, found: Column) -> None:
    of = f" of {found.encoder}" if found.encoder is not None else ""
    console.print(
        Text(f"{found.table}.{found.name}{of} ({found.type}): {found.rows:,} rows, {found.nulls:,} null, ")
        + Text(f"about {found.distinct:,} distinct")
    )
    if found.quantiles:
        console.print("  ".join(f"{name} {_number(value)}" for name, value in found.quantiles.items()))
    bars: list[tuple[str, int]] = found.top or [
        (f"{_number(low)} … {_number(high)}", rows) for low, high, rows in found.histogram
    ]
    most = max((rows for _, rows in bars), default=1)
    table = Table(box=None, show_header=False)
    table.add_column(overflow="ellipsis", no_wrap=True, max_width=60)
    table.add_column(justify="right")
    table.add_column()
    for label, rows in bars:
        table.add_row(Text(label), f"{rows:,}", "█" * max(int(rows > 0), round(BAR * rows / most)))
    console.print(table)


def _share(rows: int, of: int) -> str:
    return f"{rows / of:.1%}" if of else ""


def _number(value: Any) -> str:
    return f"{value:,.0f}" if float(value).is_integer() else f"{value:.4g}"


if __name__ == "__main__":
    sys.exit(main())
