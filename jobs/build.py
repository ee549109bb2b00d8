"""python -m jobs.build: every stage, from lists of URLs to a dataset."""

import sys
from collections.abc import Sequence

import yaml

from jobs.arguments import build_parser, load_recipe, run_main
from pipeline.build import Request, build
from pipeline.check import check_recipe, named_contents
from pipeline.errors import InputError
from pipeline.plan import plan
from pipeline.stages import STAGES
from schemas.statuses import STATUS_OF


def main(argv: Sequence[str] | None = None, stage: str | None = None) -> int:
    """Run `stage`, or every stage, as the flags say; returns the exit code."""
    name = stage or "build"
    return run_main(f"pairmill {name}", lambda: _main(sys.argv[1:] if argv is None else list(argv), stage))


def _main(argv: list[str], stage: str | None) -> int:
    parser = build_parser(f"python -m jobs.{stage or 'build'}", _description(stage))
    if stage is None:
        parser.add_argument("--until", choices=STAGES, metavar="STAGE", help="stop after this stage")
    if stage == "ingest":
        parser.add_argument("--readmit", metavar="BATCH", help="a new batch of the rows the prefilter now admits")
    if stage == "download":
        parser.add_argument(
            "--retry", metavar="REASONS", default="", help="fetch again rows that ended so: dns,timeout"
        )
    if stage == "select":
        parser.add_argument(
            "--sweep", metavar="COLUMN=A,B,C", help="say what each threshold would keep, and write nothing"
        )
    flags = parser.parse_args(argv)
    recipe = load_recipe(flags.recipe, flags.set)
    if flags.print_recipe:
        check_recipe(recipe)
        named_contents(recipe)
        yaml.safe_dump(recipe.model_dump(mode="json"), sys.stdout, sort_keys=False, allow_unicode=True)
        return 0
    if not flags.output:
        raise InputError("--output ROOT is missing: a local path or s3://bucket/prefix")
    if sweep := getattr(flags, "sweep", None):
        from pipeline.select.sweep import swept

        print(swept(recipe, flags.output, sweep))
        return 0
    until = getattr(flags, "until", None) or STAGES[-1]
    retry = tuple(filter(None, getattr(flags, "retry", "").split(",")))
    for reason in retry:
        if STATUS_OF.get(reason) != "failed" and reason != "robots":
            known = ", ".join(name for name, status in STATUS_OF.items() if status == "failed")
            raise InputError(
                f"--retry {reason}: not a reason that a fetch can be retried for; there are {known}, robots"
            )
    request = Request(
        recipe=recipe,
        root=flags.output,
        inputs=flags.input,
        stages=(stage,) if stage else STAGES[: STAGES.index(until) + 1],
        limit=flags.limit,
        readmit=getattr(flags, "readmit", None),
        retry=retry,
        accept=tuple(flags.accept),
        command=("python", "-m", f"jobs.{stage or 'build'}", *argv),
    )
    if flags.plan:
        print(plan(request))
        return 0
    return build(request)


def _description(stage: str | None) -> str:
    if stage is None:
        return "Turn lists of image URLs and alt texts into a training set; run again, it goes on from where it was."
    return f"Run the {stage} stage on what the stages before it left in ROOT."


if __name__ == "__main__":
    sys.exit(main())
