"""The stages that a recipe has, the folder of each in a ROOT, and which reads which."""

from pipeline.check import named_contents
from pipeline.fence import Fence
from pipeline.storage import Store
from pipeline.units import StageFolder
from schemas.recipe import ORDER, PER_ENCODER, Encoder, Recipe, fingerprint

STAGES = ("ingest", "download", "dedupe", "embed", "semantic", "select", "shard")
"""The stages, in their order. `hashes` and `scores` are filled by `dedupe` and `embed`."""


def has_stage(recipe: Recipe, stage: str) -> bool:
    """Whether the recipe gives the stage anything to do: `embed` and `semantic` may be left out."""
    if stage == "embed":
        return bool(recipe.embed.encoders)
    return stage != "semantic" or recipe.semantic.encoder is not None


def read_by(recipe: Recipe, stage: str) -> str | None:
    """The stage whose units the given one reads, of those that read all of the pool; None for `ingest`, `download`."""
    if stage in ("select", "shard"):
        return "select" if stage == "shard" else "semantic" if has_stage(recipe, "semantic") else "dedupe"
    return {"hashes": "download", "dedupe": "download", "embed": "dedupe", "semantic": "dedupe"}.get(stage)


def encoder_of(recipe: Recipe, key: str) -> Encoder:
    """The recipe's encoder of a key such as embed/b32."""
    return next(encoder for encoder in recipe.embed.encoders if encoder.name == key.partition("/")[2])


def stage_folders(store: Store, recipe: Recipe) -> dict[str, StageFolder]:
    """stage → its folder under this recipe: `hashes` too, embed/<encoder> and scores/<encoder> for each encoder, and
    `semantic` where it is asked for. Raises InputError where a file that the recipe names is not there."""
    folders: dict[str, StageFolder] = {}
    contents, fence = named_contents(recipe), Fence(store)
    for stage in ORDER:
        keys = [f"{stage}/{encoder.name}" for encoder in recipe.embed.encoders] if stage in PER_ENCODER else [stage]
        for key in keys if has_stage(recipe, stage) else []:
            before = {name: folder.fingerprint for name, folder in folders.items()}
            folders[key] = StageFolder(store, stage, fingerprint(recipe, key, before, contents), fence)
    return folders
