"""views.sql: a DuckDB view a table, and `samples`, one row an input row from its source to its key in the dataset."""

from collections.abc import Mapping, Sequence

_SAMPLES = """
-- One row an input row: where it came from, how it ended, and its key and shard where it is in the dataset.
CREATE OR REPLACE VIEW samples AS
SELECT p.source, p.source_row, p.batch, p.uid, p.url, p.text, p.caption,
       coalesce(o.status, 'pending') AS status, o.reason, o.detail, u.dup_of, c.kept, c.dropped_by,
       o.http_status, o.final_url, o.sha256, o.format, o.width, o.height, o.original_width, o.original_height,
       o.consent_ok, o.fetched_at, o.unit, o.pool_file, o.pool_offset, o.pool_size, o.pool_sha256, d.key, d.shard
FROM pairs p LEFT JOIN outcomes o USING (uid) LEFT JOIN dataset d USING (uid) LEFT JOIN decisions c USING (uid)
     LEFT JOIN (FROM duplicates WHERE level <> 'url') u USING (uid)
UNION ALL BY NAME
SELECT source, source_row, batch, uid, url, text, status, reason, detail, dup_of FROM rejects;
"""

_EMPTY_DATASET = (
    "SELECT CAST(NULL AS VARCHAR) AS uid, CAST(NULL AS VARCHAR) AS key, CAST(NULL AS VARCHAR) AS shard LIMIT 0"
)


def views_sql(
    uri: str, version: int, tables: Sequence[str], dataset: Sequence[str], listed: Mapping[str, Sequence[str]]
) -> str:
    """The script for the tables' `version`; `dataset` are the S.parquet files, relative to the ROOT at `uri`.

    `listed` has, for a table that is not copied, its files. In `dataset`, `shard` is the S of the files the sample is
    in, relative to the ROOT.
    """
    lines = []
    for table in tables:
        source = _quote(f"{uri}/tables/{table}/v{version}/*.parquet")
        if listed.get(table):
            source = "[" + ", ".join(_quote(f"{uri}/{path}") for path in listed[table]) + "], union_by_name = true"
        lines.append(f'CREATE OR REPLACE VIEW "{table}" AS SELECT * FROM read_parquet({source});')
    if dataset:
        files = ", ".join(_quote(f"{uri}/{path}") for path in dataset)
        shard = f"regexp_replace(substr(filename, {len(uri) + 2}), '\\.parquet$', '')"
        select = f"SELECT uid, key, {shard} AS shard FROM read_parquet([{files}], filename = true)"
    else:
        select = _EMPTY_DATASET
    lines.append(f"CREATE OR REPLACE VIEW dataset AS {select};")
    return first_line(uri, version) + "\n".join(lines) + "\n" + _SAMPLES


def first_line(uri: str, version: int) -> str:
    """The script's first line, by which its version is known."""
    return f"-- Views of {uri}, version {version}: duckdb -init views.sql\n"


def _quote(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
