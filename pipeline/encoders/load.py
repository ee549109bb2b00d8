"""The door to encoders for those who must not load torch themselves: it is imported when an encoder is made."""

from typing import TYPE_CHECKING

from pipeline.encoders.tokens import tokenizer_of
from schemas.recipe import Encoder

if TYPE_CHECKING:
    from pipeline.encoders.encoder import LoadedEncoder

__all__ = ["LoadedEncoder", "load", "tokenizer_of"]


def load(settings: Encoder, device: str = "cpu") -> "LoadedEncoder":
    """Build the towers and put their weights in. Raises InputError where something is missing or does not agree."""
    from pipeline.encoders.encoder import made

    return made(settings, device)
