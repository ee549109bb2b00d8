"""python -m jobs.train --data DATASET... --out DIR [--preset P] [--set key=value]...: a CLIP from what was built."""

import sys
from collections.abc import Sequence

import yaml

from jobs.arguments import Parser, run_main
from pipeline.errors import InputError
from pipeline.train.settings import PRESETS, TrainSettings, parse_settings


def main(argv: Sequence[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else list(argv)
    parser = Parser(
        prog="python -m jobs.train",
        description="Train a CLIP; the same command again goes on from the newest checkpoint in DIR.",
        epilog="Settings: " + ", ".join(TrainSettings.model_fields),
    )
    parser.add_argument(
        "--data", nargs="+", default=[], metavar="DATASET",
        help="ROOTs or datasets of jobs.build, or webdataset tars (folder, glob, {00..99} braces); local or s3://",
    )  # fmt: skip
    parser.add_argument("--out", metavar="DIR", help="checkpoints and metrics; DIR/latest is the model")
    parser.add_argument("--preset", metavar="P", help=f"one of {', '.join(PRESETS)}")
    parser.add_argument("--set", action="append", default=[], metavar="key=value", help="beats the preset")
    parser.add_argument("--val", nargs="+", default=[], metavar="DATASET", help="held-out pairs: recall@1 both ways")
    parser.add_argument("--licences", nargs="+", default=[], metavar="L", help="of each dataset, for the model card")
    parser.add_argument("--print-settings", action="store_true", help="show the settings as resolved, and stop")
    flags = parser.parse_args(argv)

    def train() -> int:
        settings = parse_settings(flags.preset, flags.set)
        if flags.print_settings:
            yaml.safe_dump(settings.model_dump(mode="json"), sys.stdout, sort_keys=False)
            return 0
        if not flags.data:
            raise InputError("--data DATASET is missing: a ROOT of jobs.build, a dataset's folder, or tars")
        if not flags.out:
            raise InputError("--out DIR is missing: a folder for checkpoints and metrics")
        if len(flags.licences) not in (0, len(flags.data)):
            raise InputError(f"--licences: {len(flags.licences)} given for {len(flags.data)} datasets; give one each")
        try:
            from pipeline.train.run import Request, run
        except ModuleNotFoundError as error:
            raise InputError(f"training needs {error.name}: pip install 'pairmill[train]'") from None
        command = ("python", "-m", "jobs.train", *argv)
        return run(Request(flags.data, flags.out, settings, flags.val, flags.licences, command))

    return run_main("pairmill train", train)


if __name__ == "__main__":
    sys.exit(main())
