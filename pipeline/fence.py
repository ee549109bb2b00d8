"""The fence that a retraction raises: what began before it commits nothing after it.

A worker may outlive its driver: stopped, or on a node that lost its network. It knows nothing of what was withdrawn
since. So whoever may live on so reads ROOT/retractions/fence when it begins, and again before each file it publishes;
a retraction, which holds the lease, writes it anew before it looks at anything. On a disk no moment is left between
the two: what is published is renamed or linked from scratch, which the retraction clears once the fence is up. In S3
a request that was under way when the fence went up may still arrive.
"""

import uuid

from pipeline.errors import LeaseLostError
from pipeline.storage import Store

PATH = "retractions/fence"


class Fence:
    """The fence as it was when this was made."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._seen = store.read_tagged(PATH)

    def check(self) -> None:
        """Raise LeaseLostError if a retraction has begun since."""
        if self._store.read_tagged(PATH) != self._seen:
            raise LeaseLostError(
                f"{self._store.uri}: a retraction has begun since this run did, which knows nothing of it and stops"
            )


def raise_fence(store: Store) -> None:
    """For the holder of the lease: nothing that began earlier commits from here on."""
    store.replace(PATH, uuid.uuid4().hex.encode())
    for entry in store.unfinished():
        store.discard(entry.path)
