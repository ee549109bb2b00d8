"""python -m jobs.adopt PATH --output ROOT: an img2dataset or DataComp download becomes a pool, without a request."""

import sys
from collections.abc import Sequence

from jobs.arguments import Parser, load_recipe, run_main
from pipeline.adopt.stage import Adoption
from pipeline.build import Request, build


def main(argv: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(
        prog="python -m jobs.adopt",
        description="Take over a download of img2dataset or DataComp (tars, Parquet, metadata): nothing is fetched.",
    )
    parser.add_argument("path", metavar="PATH", help="the download's folder, local or s3://; it is only read")
    parser.add_argument("--output", required=True, metavar="ROOT", help="local path or s3://bucket/prefix")
    parser.add_argument("--recipe", default="default", metavar="R", help="the recipe that later builds will use")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="beats the recipe")
    parser.add_argument("--copy", action="store_true", help="copy the images into ROOT; else they stay where they are")
    parser.add_argument("--accept", action="append", default=[], metavar="BATCH", help="accept a batch's failed gates")
    flags = parser.parse_args(given)

    def adopt() -> int:
        request = Request(
            recipe=load_recipe(flags.recipe, flags.set),
            root=flags.output,
            stages=("ingest", "download"),
            accept=tuple(flags.accept),
            adopt=Adoption(flags.path, flags.copy),
            command=("python", "-m", "jobs.adopt", *given),
        )
        return build(request)

    return run_main("pairmill adopt", adopt)


if __name__ == "__main__":
    sys.exit(main())
