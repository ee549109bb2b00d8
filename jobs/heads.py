"""python -m jobs.heads KIND FILE: a published head as NAME.json and NAME.safetensors, for embed.heads of a recipe."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from jobs.arguments import Parser, load_recipe, run_main
from pipeline.errors import InputError
from pipeline.heads.convert import COLUMNS, WATERMARK, convert, convert_watermark
from pipeline.heads.head import written


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(
        prog="python -m jobs.heads",
        description="Convert a published head. It is bound to the weights of one encoder, and refused with any other.",
    )
    parser.add_argument("kind", choices=sorted(COLUMNS), help="whose head it is")
    parser.add_argument("file", metavar="FILE.pth", help="the model as published: a PyTorch state dict")
    parser.add_argument("--out", required=True, metavar="NAME.json", help="written with NAME.safetensors beside it")
    parser.add_argument("--recipe", metavar="R", help="recipe that has the encoder whose vectors the head reads")
    parser.add_argument("--encoder", metavar="NAME", help="which of its encoders; needed where it has several")
    parser.add_argument("--set", action="append", default=[], metavar="section.key=value", help="beats the recipe")
    parser.add_argument("--encoder-sha256", metavar="HEX", help="in place of a recipe: sha256 of the encoder's weights")
    parser.add_argument("--column", metavar="NAME", help="what to call its score, if not aesthetic, nsfw or pwatermark")
    flags = parser.parse_args(argv)

    def run() -> int:
        if not flags.out.endswith(".json"):
            raise InputError(f"--out {flags.out}: give a name that ends in .json")
        if flags.kind == WATERMARK:
            head = convert_watermark(flags.file, flags.column)
            told = "reads images itself, whatever the encoder"
        else:
            encoder = _encoder(flags.recipe, flags.set, flags.encoder, flags.encoder_sha256)
            head, published = convert(flags.kind, flags.file, encoder, flags.column)
            told = f"trained on vectors of {published.trained_on}: be sure that weights {encoder[:16]}… are those"
        spec, tensors = written(head)
        out = Path(flags.out)
        try:
            out.with_suffix(".safetensors").write_bytes(tensors)
            out.write_bytes(spec)
        except OSError as error:
            raise InputError(f"--out {out}: cannot be written: {error.strerror}") from None
        print(f"{out}: {head.spec.source}; column {head.spec.column}; {told}")
        return 0

    return run_main("pairmill heads", run)


def _encoder(recipe: str | None, settings: Sequence[str], name: str | None, sha256: str | None) -> str:
    """sha256 of the weights of the encoder that was asked for. Raises InputError."""
    if (recipe is None) == (sha256 is None):
        raise InputError("give the encoder that the head reads: --recipe R [--encoder NAME], or --encoder-sha256 HEX")
    if sha256 is not None:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            raise InputError(f"--encoder-sha256 {sha256}: expected 64 lower-case hex digits")
        return sha256
    from pipeline.encoders.identity import identify

    assert recipe is not None
    encoders = {encoder.name: encoder for encoder in load_recipe(recipe, settings).embed.encoders}
    if name is None and len(encoders) == 1:
        (name,) = encoders
    if name not in encoders:
        known = ", ".join(encoders) or "none"
        raise InputError(f"--encoder {name or ''}: is none of recipe {recipe}'s encoders; there are {known}")
    return identify(encoders[name]).weights_sha256


if __name__ == "__main__":
    sys.exit(main())
