"""Everything about a request that can be refused in its first second, before anything is made."""

import ssl
from collections.abc import Callable
from pathlib import Path

from pipeline.download.addresses import AddressPolicy, read_hosts
from pipeline.download.blocklist import Blocklist
from pipeline.errors import InputError
from pipeline.gates import check_gates
from pipeline.ingest.prefilter import Prefilter
from schemas.recipe import Recipe

LATER = ("dedupe", "embed", "semantic", "select")
"""Sections of stages that do not exist yet."""


def check_recipe(recipe: Recipe) -> None:
    """Raises InputError for a recipe that parses but cannot be run."""
    for section in LATER:
        given = getattr(recipe, section)
        for name in type(given).model_fields:
            if getattr(given, name) != getattr(type(given)(), name):
                raise InputError(f"recipe {section}.{name}: there is no {section} stage yet; leave the section out")
    check_gates(recipe)
    kept = recipe.ingest.keep_columns
    if "*" not in kept:  # with all columns kept, their names are known once the input is read
        Prefilter(recipe.ingest.prefilter, kept)
    _check_download(recipe)


def _check_download(recipe: Recipe) -> None:
    download, kept = recipe.download, recipe.ingest.keep_columns
    for name, column in (("bbox_col", download.bbox_col), ("verify_hash", (download.verify_hash or (None,))[0])):
        if column and column not in kept and "*" not in kept:
            raise InputError(f"recipe download.{name}: column {column} is not kept; add it to ingest.keep_columns")
    Blocklist(download.blocklists)
    opened: list[tuple[str, Callable[[], object]]] = [
        ("allow_addresses", lambda: AddressPolicy(download.allow_addresses)),
        ("ca_file", lambda: download.ca_file and ssl.create_default_context(cafile=download.ca_file)),
        ("hosts_file", lambda: download.hosts_file and read_hosts(Path(download.hosts_file))),
    ]
    for name, use in opened:
        try:
            use()
        except (OSError, ValueError) as error:
            raise InputError(f"recipe download.{name} is {getattr(download, name)!r}: {error}") from None
