"""python -m jobs.export ROOT: the kept rows as a DataComp subset file, an index without pixels, or vectors."""

import sys
from collections.abc import Sequence

from jobs.arguments import Parser, run_main
from pipeline.errors import InputError
from pipeline.export.clip_retrieval import write_clip_retrieval
from pipeline.export.datacomp import write_datacomp_subset
from pipeline.export.urls import write_urls
from pipeline.root import open_root


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.export", description="What a ROOT keeps, for others; without any pixel.")
    parser.add_argument("root", metavar="ROOT", help="the --output of a build: a folder or s3://bucket/prefix")
    parser.add_argument(
        "--datacomp-subset", metavar="OUT.npy", help="sorted uids of the kept rows, as DataComp's tools read"
    )
    parser.add_argument(
        "--urls", metavar="OUT_DIR", help="uid, url, caption, sha256, sizes, scores as Parquet, with Croissant"
    )
    parser.add_argument(
        "--clip-retrieval", metavar="OUT_DIR", help="vectors as img_emb, text_emb and metadata, for autofaiss"
    )
    parser.add_argument("--encoder", metavar="NAME", help="whose vectors, where there are several encoders'")
    parser.add_argument("--name", default="pairmill-index", help="the index's name in its Croissant metadata")
    flags = parser.parse_args(argv)

    def export() -> int:
        if not (flags.datacomp_subset or flags.urls or flags.clip_retrieval):
            raise InputError("nothing to export: give --datacomp-subset OUT.npy, --urls or --clip-retrieval OUT_DIR")
        store = open_root(flags.root)
        if flags.datacomp_subset:
            count, column = write_datacomp_subset(store, flags.datacomp_subset)
            print(f"{flags.datacomp_subset}: {count:,} uids ({column})")
        if flags.urls:
            print(f"{flags.urls}: {write_urls(store, flags.urls, flags.name):,} rows")
        if flags.clip_retrieval:
            made = write_clip_retrieval(store, flags.clip_retrieval, flags.encoder)
            told = f"{made.rows:,} rows of {made.encoder} in {made.parts:,} part{'' if made.parts == 1 else 's'}"
            left = f"; {made.left_out:,} kept rows have no vectors of it" if made.left_out else ""
            print(f"{flags.clip_retrieval}: {told}{left}")
        return 0

    return run_main("pairmill export", export)


if __name__ == "__main__":
    sys.exit(main())
