"""How a finished ROOT's rows ended, and whether that is how the web meant them to."""

from pathlib import Path

import pyarrow.dataset as ds

from jobs.demo.pairs import Pair

Ending = tuple[str, str | None]


def ended(root: Path) -> dict[int, Ending]:
    """source_row → (status, reason), of the newest published tables. Raises ValueError for a row that ended twice."""
    rows: dict[int, Ending] = {}
    for table in ("outcomes", "rejects"):
        found = _newest(root, table).to_table(columns=["source_row", "status", "reason"])
        for row, status, reason in zip(*(found[name].to_pylist() for name in found.column_names), strict=True):
            if row in rows:
                raise ValueError(f"row {row} of the list ended twice: {rows[row]} and {(status, reason)}")
            rows[row] = (status, reason)
    return rows


def a_uid(root: Path) -> str:
    """The uid of some row that is ok."""
    found = _newest(root, "outcomes").to_table(columns=["uid"], filter=ds.field("status") == "ok")
    return str(found["uid"][0])


def differences(pairs: list[Pair], endings: dict[int, Ending]) -> list[str]:
    """One line a row that did not end as expected under the demo recipe."""
    lines = []
    for number, pair in enumerate(pairs):
        if endings.get(number) != pair.expected_in_demo:
            lines.append(
                f"row {number} ({pair.kind}) {pair.url}: expected {_say(pair.expected_in_demo)}, "
                f"got {_say(endings.get(number))}"
            )
    return lines


def _say(ending: Ending | None) -> str:
    return "nothing" if ending is None else " ".join(filter(None, ending))


def _newest(root: Path, table: str) -> ds.Dataset:
    return ds.dataset(newest_folder(root, table))


def newest_folder(root: Path, table: str) -> Path:
    """The folder of the table's newest version."""
    versions = sorted((root / "tables" / table).glob("v*"), key=lambda path: int(path.name[1:]))
    return versions[-1]
