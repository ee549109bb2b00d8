"""python -m jobs.classify --model M --labels L... IMAGES...: what an image shows, by a CLIP and your own labels."""

import argparse
import sys
from collections.abc import Sequence

from jobs.arguments import DONE, Parser, run_main
from pipeline.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m jobs.classify", description="The five likeliest labels of each image.")
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="files; after -- where --labels is the last flag")
    parser.add_argument("--model", required=True, metavar="M", help="a folder of jobs.train, or weights as embed takes")
    parser.add_argument("--arch", metavar="A", help="open_clip architecture, where the weights do not say it")
    parser.add_argument("--labels", nargs="+", required=True, metavar="L", help="labels; or one file: a label a line")
    parser.add_argument(
        "--templates", nargs="+", default=["a photo of a {}."], metavar="T", help="prompts, {} for the label"
    )
    flags = parser.parse_args(argv)
    return run_main("pairmill classify", lambda: _classify(flags))


def _classify(flags: argparse.Namespace) -> int:
    from pathlib import Path

    from pipeline.clip import filled, load

    labels, images = list(flags.labels), list(flags.images)
    if not images:  # --labels took them: whatever is a file is an image
        images = [one for one in labels[1:] if Path(one).is_file()]
        labels = [one for one in labels if one not in images]
    if not images:
        raise InputError("there is no image; give files, after -- where --labels comes last")
    if len(labels) == 1 and Path(labels[0]).is_file():
        try:
            labels = [line.strip() for line in Path(labels[0]).read_text("utf-8").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--labels {labels[0]} cannot be read: {error}") from None
    for template in flags.templates:
        filled(template, "")
    clip = load(flags.model, flags.arch)
    for image, chances in zip(images, clip.classify(images, labels, flags.templates), strict=True):
        print(image)
        for place in (-chances).argsort(kind="stable")[:5]:
            print(f"  {chances[place]:7.2%}  {labels[place]}")
    return DONE


if __name__ == "__main__":
    sys.exit(main())
