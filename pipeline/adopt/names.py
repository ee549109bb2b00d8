"""Names under which downloads carry scores, and what they are here."""

from collections.abc import Iterable
from typing import Final

GIVEN: Final = "given"
"""Encoder of scores rows where no encoder is known."""
CLIP_RETRIEVAL: Final = "clip_retrieval"
"""Encoder of clip-retrieval's vectors, whose files do not name it."""

CLIP: Final = {
    "clip_b32_similarity_score": "b32",  # DataComp
    "clip_l14_similarity_score": "l14",
    "similarity": "b32",  # LAION-400M, LAION-5B: ViT-B/32
    "clip_similarity_vitb32": "b32",  # COYO
    "clip_similarity_vitl14": "l14",
}
"""Input column (lower case) → encoder whose cosine it is."""

HEADS: Final = {
    "punsafe": "punsafe",
    "pwatermark": "pwatermark",
    "aesthetic": "aesthetic",
    "aesthetic_score": "aesthetic",
    "aesthetic_score_laion_v2": "aesthetic",
    "watermark_score": "watermark_score",
    "nsfw_score_opennsfw2": "nsfw_score_opennsfw2",
    "nsfw_score_gantman": "nsfw_score_gantman",
}
"""Input column (lower case) → column of scores."""

VECTORS: Final = {"img_emb": (CLIP_RETRIEVAL, "image"), "text_emb": (CLIP_RETRIEVAL, "text")}
"""clip-retrieval's arrays; DataComp's are named <encoder>_img and <encoder>_txt."""
VECTORS_OF: Final = ("b32", "l14", CLIP_RETRIEVAL)
"""Encoders whose vectors come with downloads: DataComp's metadata and clip-retrieval's folders."""


def clip_columns(names: Iterable[str]) -> dict[str, str]:
    """Encoder → the column with its cosine."""
    return {CLIP[name.lower()]: name for name in names if name.lower() in CLIP}


def head_columns(names: Iterable[str]) -> dict[str, str]:
    """Column of scores → the input column it comes from."""
    return {HEADS[name.lower()]: name for name in names if name.lower() in HEADS}


def vector_of(array: str) -> tuple[str, str] | None:
    """(encoder, image or text) of an array's name, or None for another array."""
    if array in VECTORS:
        return VECTORS[array]
    encoder, _, side = array.rpartition("_")
    return (encoder, {"img": "image", "txt": "text"}[side]) if encoder and side in ("img", "txt") else None
