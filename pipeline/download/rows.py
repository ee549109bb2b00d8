"""A download unit's rows: which URLs it fetches, and its outcomes and consent tables."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from schemas.statuses import STATUS_OF
from schemas.tables import CONSENT, OUTCOMES

_FROM_PAIRS = ("uid", "source", "source_row", "batch", "url", "text", "caption")


@dataclass(slots=True)
class Target:
    """One fetch_url and the rows of the unit that share it."""

    fetch_url: str
    rows: list[int] = field(default_factory=list)


def targets(pairs: pa.Table, wanted: set[int] | None = None) -> list[Target]:
    """The unit's fetches in the order of the table; `wanted` restricts them to some rows."""
    found: dict[str, Target] = {}
    for row, url in enumerate(pairs["fetch_url"].to_pylist()):
        if wanted is None or row in wanted:
            found.setdefault(url, Target(url)).rows.append(row)
    return list(found.values())


def by_host(fetches: list[Target], host_of: Callable[[str], str]) -> Iterator[tuple[str, list[Target]]]:
    """(host, its fetches); the unit's table has a host's rows together, but redirected retries need not."""
    hosts: dict[str, list[Target]] = {}
    for fetch in fetches:
        hosts.setdefault(host_of(fetch.fetch_url), []).append(fetch)
    yield from hosts.items()


class Outcomes:
    """Collects one outcome a row; `table` refuses to be made while one is missing."""

    def __init__(self, pairs: pa.Table, unit: str, generation: int) -> None:
        self._pairs = pairs
        self._made: list[dict[str, Any] | None] = [None] * pairs.num_rows
        self._consent: list[dict[str, Any]] = []
        self._base = {"unit": unit, "generation": generation}
        self._uids: list[str] = pairs["uid"].to_pylist()

    def set(self, row: int, reason: str | None, values: dict[str, Any]) -> None:
        """End a row with `reason` (None for ok). Raises ValueError where it has ended before."""
        if self._made[row] is not None:
            raise ValueError(f"row {row} of unit {self._base['unit']} ended twice")
        status = "ok" if reason is None else STATUS_OF[reason]
        self._made[row] = {**self._base, **values, "status": status, "reason": reason}

    def keep(self, row: int, earlier: dict[str, Any]) -> None:
        """Take over a row's outcome from an earlier generation."""
        self._made[row] = earlier

    def consent(self, row: int, signal: dict[str, Any]) -> None:
        self._consent.append({"uid": self._uids[row], **signal})

    def keep_consent(self, earlier: list[dict[str, Any]]) -> None:
        self._consent.extend(earlier)

    def __len__(self) -> int:
        return len(self._made)

    def in_pool(self, path: str) -> None:
        """Name the pool file (relative to ROOT) that holds the images added in this generation."""
        for made in self._made:
            if made is not None and made.get("pool_offset") is not None and not made.get("pool_file"):
                made["pool_file"] = path

    def unfinished(self) -> list[int]:
        return [row for row, made in enumerate(self._made) if made is None]

    def statuses(self) -> tuple[list[str], list[str | None]]:
        made = [row for row in self._made if row is not None]
        return [row["status"] for row in made], [row["reason"] for row in made]

    def table(self) -> pa.Table:
        """All outcomes, in the order of the pairs, with the kept input columns."""
        if missing := self.unfinished():
            raise ValueError(f"unit {self._base['unit']}: {len(missing)} rows have no outcome")
        columns = {}
        for schema_field in OUTCOMES:
            if schema_field.name in _FROM_PAIRS:
                columns[schema_field.name] = self._pairs[schema_field.name].cast(schema_field.type)
            else:
                values = [row.get(schema_field.name) for row in self._made if row is not None]
                columns[schema_field.name] = pa.array(values, schema_field.type)
        for name in self._pairs.column_names:
            if name.startswith("src_"):
                columns[name] = self._pairs[name]
        return pa.table(columns)

    def consent_table(self) -> pa.Table:
        rows = sorted(
            self._consent, key=lambda row: (row["uid"], row["signal"], row["source"] or "", row["value"] or "")
        )
        return pa.Table.from_pylist(rows, schema=CONSENT)
