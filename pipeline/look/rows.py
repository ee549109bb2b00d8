"""A seeded sample of the published rows for which a predicate holds, and groups of duplicates.

A uid is a hash already, so the rows that follow a seed's place in the order of uids are a random sample, and the same
one on every run. Tables are sorted by uid: where many rows match, few of their row groups are read.
"""

import difflib
import hashlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.errors import InputError
from pipeline.metadata import COSINE, PIXELS
from pipeline.rules import flaw
from pipeline.storage import Store
from pipeline.tables import open_table, read_published
from schemas.tables import SCORES

Row = dict[str, Any]
"""An input row: its columns of all tables, without nulls."""

JOINED = ("pairs", "decisions", "duplicates", "hashes", "scores")
"""Tables that add their columns to those of outcomes, by uid; where two have a name, the first has it. clip_score is
that of the first encoder by name, clip_score_<encoder> each one's own; scores that came with a download fill in."""

_FIRST = "weights_sha256 IS NULL"
"""Scores that no encoder of a recipe made come after those that one did."""

SHOWN = (
    "uid", "source", "source_row", "batch", "url", "caption", "status", "reason", "detail", "bytes", "format", "width",
    "height", "original_width", "original_height", "pool_file", "pool_offset", "pool_size", "pool_sha256", "lang",
    "lang_score", "kept", "dropped_by", "dup_of", "level", "distance",
)  # fmt: skip
"""Columns that rows have, beside `pass_<rule>` and those a predicate names."""

MEMBERS = 11
"""Dropped rows shown of a group; the rest is counted."""

_FIRST_ROWS = 50_000
_PIXELS = "original_width::BIGINT * original_height AS pixels"
_UIDS = 1 << 128
_END = "g"
"""After every uid."""


@dataclass(frozen=True)
class Group:
    """A row that stayed, and those dropped for it (MEMBERS of `dropped`), the nearest first."""

    witness: Row
    members: list[Row]
    dropped: int


@dataclass(frozen=True)
class Decile:
    """Rows of a tenth of the values of a column, the lowest value first: `sample` of its `rows`."""

    number: int
    low: float
    high: float
    rows: int
    sample: list[Row]


class Rows:
    """The rows of a ROOT's published tables: every input row once, as outcomes and rejects have them."""

    def __init__(self, store: Store, more: Collection[str] = ()) -> None:
        """`more` are further columns wanted, where there are such. Raises InputError where nothing is published."""
        self._more = {*SHOWN, *more}
        self._datasets: dict[str, ds.Dataset] = {}
        self.version = 0
        for table in ("outcomes", "rejects", *JOINED):
            if published := read_published(store, table):
                self._datasets[table] = open_table(store, [file.path for file in published.files], table)
                self.version = max(self.version, published.version)
        if not {"outcomes", "rejects"} <= self._datasets.keys():
            raise InputError(f"{store.uri}: no tables are published yet; they are at the end of a build")
        self._table_of: dict[str, str] = {}
        fields = []
        for table in ("outcomes", *JOINED, "rejects"):
            for field in self._datasets[table].schema if table in self._datasets else ():
                if field.name not in self._table_of:
                    self._table_of[field.name] = table
                    fields.append(field)
        self._table_of[PIXELS.name] = "outcomes"
        self._engine = duckdb.connect(config={"enable_external_access": "false"})
        self._engine.execute("SET python_enable_replacements = false")
        for table, dataset in self._datasets.items():
            self._engine.register(f"{table}_", dataset)
        self._cosines = self._each_encoder()
        fields += [pa.field(name, pa.float32()) for name in self._cosines.values()]
        self._schema = pa.schema([*fields, PIXELS])
        self._engine.register("none_", self._schema.empty_table())
        self._engine.execute("SET lock_configuration = true")

    def _each_encoder(self) -> dict[str, str]:
        """For each encoder a view with its cosines, as another table to join: view → column."""
        found: dict[str, str] = {}
        if "scores" in self._datasets:
            encoders = self._engine.execute("SELECT DISTINCT encoder FROM scores_ ORDER BY 1").fetchall()
            for number, (encoder,) in enumerate(encoders):
                view, name = f"cosine{number}", f"{COSINE}{encoder}"
                found[view], self._table_of[name] = name, view
                own = f"SELECT uid, any_value(clip_score ORDER BY {_FIRST}) AS {_quote(name)} FROM scores_"
                chosen = f"{own} WHERE encoder = {_text(encoder)} GROUP BY uid"
                self._engine.execute(f"CREATE TEMP VIEW {view}_ AS {chosen}")
        return found

    def number(self, column: str) -> None:
        """Raises InputError for a name that is no number of fetched rows."""
        numbers = [
            field.name
            for field in self._schema
            if (pa.types.is_integer(field.type) or pa.types.is_floating(field.type))
            and self._table_of[field.name] != "rejects"
        ]
        if column not in numbers:
            near = difflib.get_close_matches(column, numbers, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise InputError(f"--by {column}: is no number of each row; {hint}there are {', '.join(numbers)}")

    def named(self, predicate: str) -> list[str]:
        """The columns that a predicate names. Raises InputError for one that is no condition on a row."""
        names = self._schema.names
        if problem := flaw(self._engine, predicate, "none_", names):
            raise InputError(f"--where {predicate!r} {problem}")
        return [name for name in names if flaw(self._engine, predicate, "none_", [n for n in names if n != name])]

    def sample(self, predicate: str, count: int, seed: int) -> list[Row]:
        """Up to `count` rows for which the predicate is true, in an order that the seed decides."""
        named = self.named(predicate)
        start = _start(seed)
        found: list[tuple[str, Row]] = []
        for low, high in _pieces(start, min(1.0, _FIRST_ROWS / max(1, self._datasets["outcomes"].count_rows()))):
            piece: list[tuple[str, Row]] = []
            for table in ("outcomes", "rejects"):
                # Rejects have few columns, and some have no uid: they are read as they are found.
                wanted = "at_, uid" if table == "outcomes" else "*"
                query = (
                    f"SELECT {wanted} FROM ({self._rows(table, named, low, high)}) "
                    f"WHERE TRY((\n{predicate}\n)) ORDER BY at_, source_row LIMIT {count}"
                )
                piece += [(row.pop("at_"), row) for row in self._fetch(query)]
            found += sorted(piece, key=lambda one: one[0])
            if len(found) >= count:
                break
        return self._whole([row for _, row in found[:count]], named)

    def ordered(self, predicate: str, column: str, count: int, seed: int) -> list[Row]:
        """A sample of the rows that have a value in the column, the lowest first."""
        rows = self.sample(f"({predicate}\n) AND isfinite({_quote(column)}::DOUBLE)", count, seed)
        return sorted(rows, key=lambda row: (row[column], row["uid"]))

    def deciles(self, predicate: str, column: str, count: int, seed: int) -> list[Decile]:
        """Up to `count` / 10 rows of each tenth of the values, in the seed's order; rows without a value are in none.

        Decile d has the values above the 10·(d − 1)% quantile up to the 10·d% one: equal values are in one decile, so
        that another may be larger, smaller or not there.
        """
        named = [*self.named(predicate), column]
        value = f"{_quote(column)}::DOUBLE"
        rows = (
            f"(SELECT at_, {value} AS value_ FROM ({self._rows('outcomes', named)}) "
            f"WHERE TRY((\n{predicate}\n)) AND isfinite({value}))"
        )
        tenths = [number / 10 for number in range(1, 10)]
        (edges,) = self._engine.execute(f"SELECT quantile_disc(value_, {tenths}) FROM {rows}").fetchone() or (None,)
        if not edges:
            return []
        number = " + ".join(f"(value_ > {edge!r})::INT" for edge in edges)
        start = f"{_start(seed):032x}"
        found = self._engine.execute(
            f"SELECT 1 + {number} AS decile, min(value_), max(value_), count(*), "
            f"min(concat((at_ < '{start}')::INT, at_), {max(1, count // 10)}) FROM {rows} GROUP BY 1 ORDER BY 1"
        ).fetchall()
        deciles = []
        for decile, low, high, total, keys in found:
            sample = self._outcomes([key[1:] for key in keys], named)
            sample.sort(key=lambda row: (row[column], row["uid"]))
            deciles.append(Decile(decile, low, high, total, sample))
        return deciles

    def groups(self, predicate: str, count: int, seed: int) -> list[Group]:
        """Up to `count` groups in which the predicate is true for some dropped row, in the seed's order."""
        named = [*self.named(predicate), "dup_of"]
        start = f"{_start(seed):032x}"
        witnesses: set[str] = set()
        for table in ("outcomes", "rejects"):
            query = (
                f"SELECT DISTINCT dup_of FROM ({self._rows(table, named)}) WHERE dup_of IS NOT NULL AND "
                f"TRY((\n{predicate}\n)) ORDER BY dup_of < '{start}', dup_of LIMIT {count}"
            )
            witnesses.update(row["dup_of"] for row in self._fetch(query))
        chosen = sorted(witnesses, key=lambda uid: (uid < start, uid))[:count]
        return self._groups(chosen, named)

    def _groups(self, witnesses: list[str], named: Collection[str]) -> list[Group]:
        dropped: dict[str, list[Row]] = {uid: [] for uid in witnesses}
        wanted = ds.field("dup_of").isin(pa.array(witnesses, pa.string()))
        if "duplicates" in self._datasets:
            fetched = wanted & (ds.field("level") != "url")
            for row in self._datasets["duplicates"].to_table(filter=fetched).to_pylist():
                dropped.setdefault(row["dup_of"], []).append(row)
        ordered = {
            uid: sorted(rows, key=lambda row: (row["distance"] or 0, row["level"], row["uid"]))
            for uid, rows in dropped.items()
        }
        shown = [row["uid"] for rows in ordered.values() for row in rows[:MEMBERS]]
        whole = {row["uid"]: row for row in self._outcomes([*witnesses, *shown], named)}
        groups = {uid: [whole[row["uid"]] for row in rows if row["uid"] in whole] for uid, rows in ordered.items()}
        counts = {uid: len(rows) for uid, rows in ordered.items()}
        # Ingest's duplicates were never fetched: they come last.
        for row in _rows_of(self._datasets["rejects"].to_table(filter=wanted)):
            counts[row["dup_of"]] += 1
            groups[row["dup_of"]].append(row)
        return [Group(whole[uid], groups[uid][:MEMBERS], counts[uid]) for uid in witnesses if uid in whole]

    def _rows(self, table: str, named: Collection[str], low: str = "", high: str = _END) -> str:
        """SQL of a table's rows with every column the predicate names, and `at_`, their place in the order."""
        if table == "rejects":
            at = "coalesce(uid, md5(concat(source, ' ', source_row)))"
            level = ", CASE WHEN reason = 'duplicate' THEN 'url' END AS level" if "level" in self._table_of else ""
            rows = f"SELECT {at} AS at_, *{level} FROM rejects_ WHERE {at} >= '{low}' AND {at} < '{high}'"
            return f"SELECT * FROM none_ UNION ALL BY NAME ({rows})"
        of: dict[str, list[str]] = {"outcomes": ["uid", "source_row"]}
        for name in named:
            if (columns := of.setdefault(self._table_of[name], ["uid"])) and name not in columns:
                columns.append(name)
        of.pop("rejects", None)
        parts = []
        for joined, columns in of.items():
            if joined == "scores":
                selected = ", ".join(_of_encoders(name) for name in columns)
            else:
                selected = ", ".join(_PIXELS if name == PIXELS.name else _quote(name) for name in columns)
            part = f"SELECT {selected} FROM {joined}_ WHERE uid >= '{low}' AND uid < '{high}'"
            parts.append(f"({part} GROUP BY uid)" if joined == "scores" else f"({part})")
        joins = " ".join(f"LEFT JOIN {part} USING (uid)" for part in parts[1:])
        missing = [name for name in named if self._table_of[name] == "rejects"]
        nulls = "".join(f", NULL AS {_quote(name)}" for name in missing)
        return f"SELECT uid AS at_, *{nulls} FROM {parts[0]} {joins}"

    def _whole(self, rows: list[Row], named: Collection[str]) -> list[Row]:
        """The rows with the columns of all tables; those of rejects have theirs already."""
        outcomes = {row["uid"]: row for row in self._outcomes([row["uid"] for row in rows if len(row) == 1], named)}
        return [outcomes[row["uid"]] if len(row) == 1 else row for row in rows]

    def _outcomes(self, uids: list[str], named: Collection[str]) -> list[Row]:
        found: dict[str, Row] = {}
        if not uids:
            return []
        wanted = {*self._more, *named, *(name for name in self._table_of if name.startswith("pass_"))}
        near = (ds.field("uid") >= min(uids)) & (ds.field("uid") <= max(uids))
        for table in ("outcomes", *(name for name in JOINED if name != "scores")):
            if table in self._datasets:
                mine = [name for name, of in self._table_of.items() if of == table and name in wanted - {"pixels"}]
                columns = list(dict.fromkeys(["uid", *mine]))
                if len(columns) == 1:
                    continue
                for row in _rows_of(self._datasets[table].to_table(columns, filter=near & ds.field("uid").isin(uids))):
                    if table == "outcomes" or row["uid"] in found:
                        found[row["uid"]] = row | found.get(row["uid"], {})
        scores = [name for name in wanted if self._table_of.get(name) in ("scores", *self._cosines)]
        if scores:
            among = ", ".join(f"'{uid}'" for uid in uids)
            joined = (
                f"SELECT * FROM ({self._rows('outcomes', scores, min(uids), max(uids) + _END)}) WHERE uid IN ({among})"
            )
            for row in self._fetch(joined):
                found[row["uid"]] |= {name: row[name] for name in scores if name in row}
        if PIXELS.name in wanted:
            for row in found.values():
                if "original_width" in row:
                    row[PIXELS.name] = row["original_width"] * row["original_height"]
        return list(found.values())

    def _fetch(self, query: str) -> list[Row]:
        return _rows_of(self._engine.sql(query).to_arrow_table())


def _rows_of(table: pa.Table) -> list[Row]:
    return [{name: value for name, value in row.items() if value is not None} for row in table.to_pylist()]


def _start(seed: int) -> int:
    return int.from_bytes(hashlib.sha256(str(seed).encode()).digest()[:16])


def _pieces(start: int, first: float) -> Iterator[tuple[str, str]]:
    """The space of uids from `start` and round again, as [low, high) pieces: a small one first, then larger ones."""
    begun, share = 0, first
    while begun < _UIDS:
        end = _UIDS if share >= 1 else int(share * _UIDS)
        low, high = start + begun, start + end
        if low < _UIDS < high:
            yield _hex(low), _END
            yield "", _hex(high - _UIDS)
        else:
            wrapped = low // _UIDS * _UIDS
            yield _hex(low - wrapped), _hex(high - wrapped)
        begun, share = end, share * 16


def _hex(value: int) -> str:
    return _END if value >= _UIDS else f"{value:032x}"


def _of_encoders(name: str) -> str:
    """A column of a pair's scores: a head's where some encoder has it, the rest of the first encoder."""
    if name == "uid":
        return name
    every = "first" if name in SCORES.names else "any_value"
    return f"{every}({_quote(name)} ORDER BY {_FIRST}, encoder) AS {_quote(name)}"


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _text(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
