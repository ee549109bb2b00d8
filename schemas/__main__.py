"""python -m schemas: write dictionary.md (every table and status) and recipe.schema.json beside this file."""

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa

from schemas.recipe import Recipe
from schemas.statuses import MEANING, REASONS
from schemas.tables import INDEX, SAMPLES, TABLES

_INTRO = """# Data dictionary

Written by `python -m schemas`; a test fails where it is not current. Types are Arrow's. Every hash is lower-case hex
and every time is in UTC. Columns of the input that a recipe keeps are added as `src_<name>` (string) to pairs and
outcomes.
"""


def dictionary() -> str:
    """The data dictionary, as Markdown."""
    parts = [_INTRO]
    for name, schema in {**TABLES, "dataset S.parquet": SAMPLES, "index S.parquet": INDEX}.items():
        parts.append(f"## {name}\n\n{_description(schema)}\n")
        rows = [f"| `{field.name}` | {_type(field.type)} | {_cell(_description(field))} |" for field in schema]
        parts.append("\n".join(["| column | type | meaning |", "| --- | --- | --- |", *rows]) + "\n")
    parts.append("## Statuses and reasons\n\nEvery input row ends in exactly one of these.\n")
    statuses = [
        f"| `{status}` | {MEANING[status]} | {' '.join(f'`{reason}`' for reason in reasons)} |"
        for status, reasons in REASONS.items()
    ]
    parts.append("\n".join(["| status | meaning | reasons |", "| --- | --- | --- |", *statuses]) + "\n")
    return "\n".join(parts)


def recipe_schema() -> str:
    """The recipe's JSON Schema; `shapes_results` in a field says whether changing it makes results anew."""
    schema = _finite(Recipe.model_json_schema())
    return json.dumps({"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}, indent=1) + "\n"


FILES = {"dictionary.md": dictionary, "recipe.schema.json": recipe_schema}


def main() -> None:
    for name, write in FILES.items():
        (Path(__file__).parent / name).write_text(write())


def _description(described: pa.Schema | pa.Field) -> str:
    return str(described.metadata[b"description"].decode())


def _type(type_: pa.DataType) -> str:
    if pa.types.is_list(type_):
        return f"list of {_type(type_.value_type)}"
    return {"float": "float32", "double": "float64"}.get(str(type_), str(type_))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _finite(value: Any) -> Any:
    """JSON has no infinity: a default without bound is left out."""
    if isinstance(value, dict):
        return {
            name: _finite(inner)
            for name, inner in value.items()
            if not (isinstance(inner, float) and math.isinf(inner))
        }
    if isinstance(value, list):
        return [_finite(inner) for inner in value]
    return value


if __name__ == "__main__":
    main()
