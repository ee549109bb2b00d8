"""The kept rows of a ROOT, from its published tables: those `select` kept; all ok rows where it has not run yet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa
import pyarrow.dataset as ds

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.tables import open_table, read_published

ROWS = 131_072
TABLES = ("outcomes", "decisions", "scores")


class KeptRows:
    """Queries over the kept rows: `outcomes` and `scores` are tables of them. Joins and sorts spill to disk."""

    def __init__(self, engine: duckdb.DuckDBPyConnection, store: Store) -> None:
        self._engine, self._store = engine, store
        self.columns = self._names("outcomes")
        self.encoders = [str(row[0]) for row in self._all("SELECT DISTINCT encoder FROM scores_ ORDER BY 1")]
        known = {"uid", "encoder", "clip_score", "weights_sha256"}
        self.heads = [name for name in self._names("scores_") if name not in known]

    def count(self) -> int:
        """Kept rows."""
        (rows,) = self._all("SELECT count(*) FROM outcomes")[0]
        assert isinstance(rows, int)
        return rows

    def add(self, name: str, paths: Sequence[str], schema: pa.Schema) -> None:
        """Make the Parquet files at these paths, relative to ROOT, a table of that name."""
        filesystem, root = self._store.arrow()
        full = [f"{root}/{path}" for path in paths]
        table = ds.dataset(full, schema=schema, format="parquet", filesystem=filesystem) if paths else None
        self._engine.register(name, schema.empty_table() if table is None else table)

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The query's rows, ROWS at a time."""
        yield from self._engine.sql(query).to_arrow_reader(ROWS)

    def with_scores(self, columns: Sequence[str]) -> str:
        """A query of outcomes' columns, a clip_score_<encoder> an encoder and the heads; outcomes is `o` in it."""
        chosen = [f'o."{name}"' for name in columns]
        joins = []
        for number, encoder in enumerate(self.encoders):
            literal = encoder.replace("'", "''")
            # Of one name a download's scores and a recipe's encoder: the recipe's.
            own = f"SELECT DISTINCT ON (uid) * FROM scores_ WHERE encoder = '{literal}'"
            ordered = f"({own} ORDER BY uid, weights_sha256 IS NULL)"
            joins.append(f"LEFT JOIN {ordered} s{number} ON s{number}.uid = o.uid")
            if encoder != "given":
                chosen.append(f's{number}.clip_score AS "clip_score_{encoder}"')
        # Heads are the same in every row of a pair.
        every = [f"s{number}" for number in range(len(self.encoders))]
        for name in self.heads if every else []:
            values = ", ".join(f'{scores}."{name}"' for scores in every)
            chosen.append(f'coalesce({values}) AS "{name}"')
        return f"SELECT {', '.join(chosen)} FROM outcomes o {' '.join(joins)}"

    def _names(self, table: str) -> list[str]:
        return [str(row[0]) for row in self._all(f"DESCRIBE {table}")]

    def _all(self, query: str) -> list[tuple[object, ...]]:
        return list(self._engine.execute(query).fetchall())


@contextmanager
def kept_rows(store: Store) -> Iterator[KeptRows]:
    """Raises InputError before the first publication."""
    with duckdb.connect() as engine:
        decided = False
        for table in TABLES:
            published = read_published(store, table)
            if published is None:
                raise InputError(f"{store.uri}: no tables are published yet; they are at the end of a build")
            decided = decided or "select" in published.made_from
            engine.register(f"{table}_", open_table(store, [file.path for file in published.files], table))
        among = "AND uid IN (SELECT uid FROM decisions_ WHERE kept)" if decided else ""
        engine.execute(f"CREATE VIEW outcomes AS FROM outcomes_ WHERE status = 'ok' {among}")
        yield KeptRows(engine, store)
