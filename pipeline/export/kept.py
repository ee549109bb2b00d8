"""The kept rows of a ROOT, from its published tables: those `select` kept; all ok rows where it has not run yet."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import duckdb
import pyarrow as pa

from pipeline.errors import InputError
from pipeline.storage import Store
from pipeline.tables import open_table, read_published

ROWS = 131_072
TABLES = ("outcomes", "decisions", "scores")


class KeptRows:
    """Queries over the kept rows: `outcomes` and `scores` are tables of them. Joins and sorts spill to disk."""

    def __init__(self, engine: duckdb.DuckDBPyConnection) -> None:
        self._engine = engine
        self.columns = self._names("outcomes")
        self.encoders = [str(row[0]) for row in self._all("SELECT DISTINCT encoder FROM scores_ ORDER BY 1")]
        known = {"uid", "encoder", "clip_score", "weights_sha256"}
        self.heads = [name for name in self._names("scores_") if name not in known]

    def batches(self, query: str) -> Iterator[pa.RecordBatch]:
        """The query's rows, ROWS at a time."""
        yield from self._engine.sql(query).to_arrow_reader(ROWS)

    def with_scores(self, columns: Sequence[str]) -> str:
        """A query of outcomes' columns, a clip_score_<encoder> an encoder and the heads, sorted by uid."""
        chosen = [f'o."{name}"' for name in columns]
        joins = []
        for number, encoder in enumerate(self.encoders):
            literal = encoder.replace("'", "''")
            joins.append(f"LEFT JOIN (FROM scores_ WHERE encoder = '{literal}') s{number} ON s{number}.uid = o.uid")
            if encoder != "given":
                chosen.append(f's{number}.clip_score AS "clip_score_{encoder}"')
        # Heads are the same in every row of a pair.
        every = [f"s{number}" for number in range(len(self.encoders))]
        for name in self.heads if every else []:
            values = ", ".join(f'{scores}."{name}"' for scores in every)
            chosen.append(f'coalesce({values}) AS "{name}"')
        return f"SELECT {', '.join(chosen)} FROM outcomes o {' '.join(joins)} ORDER BY o.uid"

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
        yield KeptRows(engine)
