"""The generated documents are those of the code as it is."""

import json
from pathlib import Path

import pyarrow as pa
import pytest

import schemas
from schemas.__main__ import FILES
from schemas.tables import INDEX, TABLES


@pytest.mark.parametrize("name", FILES)
def test_the_committed_document_is_current(name: str) -> None:
    written = (Path(schemas.__file__).parent / name).read_text()
    assert written == FILES[name](), "run `python -m schemas`"


def test_the_recipes_schema_is_json_that_any_parser_reads() -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    schema = json.loads(FILES["recipe.schema.json"](), parse_constant=refuse)
    assert schema["properties"]["download"]


@pytest.mark.parametrize("table", [*TABLES, "index S.parquet"])
def test_every_column_has_a_type_that_all_readers_know(table: str) -> None:
    known = {
        pa.string(), pa.bool_(), pa.int32(), pa.int64(), pa.float32(), pa.float64(), pa.timestamp("us", tz="UTC"),
        pa.list_(pa.float32()),
    }  # fmt: skip
    schema = TABLES.get(table, INDEX)
    assert {field.type for field in schema} <= known
    assert all(field.metadata[b"description"] for field in schema)
