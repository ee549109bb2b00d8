"""Finished local files put where a user asked for them, whole or not at all."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import InputError
from pipeline.storage import holder


@contextmanager
def written(out: str) -> Iterator[Path]:
    """A local name to write to; its file gets the name `out`, local or s3://, when the block ends without an error."""
    remote = "://" in out
    target = Path(out).absolute()
    try:
        if not remote:
            target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".export-", dir=None if remote else target.parent))
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror}); give another place") from None
    try:
        local = folder / target.name
        yield local
        if remote:
            store, name = holder(out)
            store.publish(local, name)
        else:
            with local.open("rb") as file:
                os.fsync(file.fileno())
            local.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
