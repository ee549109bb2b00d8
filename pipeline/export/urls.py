"""An index without pixels: where each kept image was, what it was called, and what its bytes hashed to."""

import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.files import written
from pipeline.export.kept import kept_rows
from pipeline.storage import Store
from pipeline.units import measure
from schemas.tables import OUTCOMES

INDEX = "index.parquet"
CROISSANT = "croissant.jsonld"
"""Not .json, which `--input` would take for a list of pairs."""
COLUMNS = (
    "uid", "url", "caption", "sha256", "md5", "bytes", "original_width", "original_height", "width", "height",
)  # fmt: skip
_TYPES = {"string": "sc:Text", "int32": "sc:Integer", "int64": "sc:Integer", "float": "sc:Float"}
_CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""Of the Croissant 1.0 specification, appendix 1."""


def write_urls(store: Store, folder: str, name: str) -> int:
    """Write the index and its Croissant metadata; returns the index's rows. Raises InputError as kept_rows does."""
    folder = folder.rstrip("/")
    count = 0
    with kept_rows(store) as rows, written(f"{folder}/{INDEX}") as local:
        batches = rows.batches(f"{rows.with_scores(COLUMNS)} ORDER BY o.uid")
        first = next(batches, None)
        schema = first.schema if first is not None else pa.schema([OUTCOMES.field(name) for name in COLUMNS])
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            while first is not None:
                writer.write_batch(first)
                count += first.num_rows
                first = next(batches, None)
        size, digest = measure(local)
    described = croissant(name, schema, count, size, digest)
    with written(f"{folder}/{CROISSANT}") as local:
        local.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n")
    return count


def croissant(name: str, schema: pa.Schema, rows: int, size: int, digest: str) -> dict[str, Any]:
    """Croissant 1.0 metadata of an index of this schema."""
    told = {field.name: (field.metadata or {}).get(b"description", b"").decode() for field in OUTCOMES}
    told["caption"] = "what trains: the image's alt text"
    fields = [
        {
            "@type": "cr:Field",
            "@id": f"pairs/{field.name}",
            "name": field.name,
            "description": told.get(field.name, "score of the pair"),
            "dataType": "sc:URL" if field.name == "url" else _TYPES[str(field.type)],
            "source": {"fileObject": {"@id": INDEX}, "extract": {"column": field.name}},
        }
        for field in schema
    ]
    return {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "name": name,
        "description": f"{rows} image-text pairs: addresses, captions and hashes, without the images.",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": INDEX,
                "name": INDEX,
                "contentUrl": INDEX,
                "contentSize": f"{size} B",
                "encodingFormat": "application/x-parquet",
                "sha256": digest,
            }
        ],
        "recordSet": [
            {"@type": "cr:RecordSet", "@id": "pairs", "name": "pairs", "key": {"@id": "pairs/uid"}, "field": fields}
        ],
    }
