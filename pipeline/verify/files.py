"""Invariant 4: every recorded file is there, of its recorded size and sha256; and the bytes of invariant 2."""

import hashlib
from collections.abc import Iterator

import pyarrow as pa

from pipeline.storage import Store
from pipeline.verify.state import Folder, State
from pipeline.verify.tar import Tar, TarError, read_tar
from pipeline.verify.units import Place, pool_rows
from schemas.records import FileEntry, UnitRecord

BUFFER = 4 << 20


def chosen(name: str, share: float) -> bool:
    """Whether a file or member is in a sample of `share`: by the hash of its name, so that every run takes the same."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) < share * 2**32


def sha256_of(store: Store, path: str) -> str:
    """sha256 of a file, read as a stream. Raises FileNotFoundError."""
    filesystem, root = store.arrow()
    digest = hashlib.sha256()
    with filesystem.open_input_stream(f"{root}/{path}") as stream:
        while data := stream.read(BUFFER):
            digest.update(data)
    return digest.hexdigest()


def check_size(state: State, path: str, entry: FileEntry) -> Iterator[str]:
    size = state.sizes.get(path)
    if size is None:
        yield f"{path}: is recorded but missing"
    elif size != entry.bytes:
        yield f"{path}: has {size} bytes, its record says {entry.bytes}"


def check_hash(store: Store, path: str, entry: FileEntry) -> list[str]:
    try:
        found = sha256_of(store, path)
    except FileNotFoundError:
        return []  # told by check_size
    return [] if found == entry.sha256 else [f"{path}: its sha256 is {found}, its record says {entry.sha256}"]


def read_tar_or_tell(
    store: Store, path: str, entry: FileEntry, keep: tuple[str, ...] = ()
) -> tuple[Tar | None, list[str]]:
    """A tar's members, and what breaks invariant 4 in it."""
    try:
        tar = read_tar(store, path, keep)
    except FileNotFoundError:
        return None, []
    except TarError as error:
        return None, [f"{path}: {error}"]
    if tar.sha256 != entry.sha256:
        return tar, [f"{path}: its sha256 is {tar.sha256}, its record says {entry.sha256}"]
    return tar, []


def check_pool(
    store: Store, folder: Folder, record: UnitRecord, outcomes: pa.Table, share: float
) -> tuple[list[str], list[str], int]:
    """Read a unit's pool files: breaches of invariant 2, breaches of 4, members hashed."""
    pool: list[str] = []
    files: list[str] = []
    hashed = 0
    for entry in folder.files(record, "pool"):
        path = f"{folder.base}/{entry.path}"
        wanted = pool_rows(outcomes, path)
        if not chosen(path, share):
            sample = {place: uid for place, uid in wanted.items() if chosen(uid, share)}
            pool += _members_alone(store, path, sample)
            hashed += len(sample)
            continue
        tar, broken = read_tar_or_tell(store, path, entry)
        files += broken
        if tar is None:
            continue
        hashed += len(tar.members)
        there = {member.offset: member for member in tar.members}
        for (offset, size, sha256), uid in wanted.items():
            member = there.get(offset)
            if member is None or member.size != size:
                pool.append(f"{path}: {uid} points to {size} bytes from {offset}, where no such member is")
            elif member.sha256 != sha256:
                pool.append(f"{path}: the member of {uid} (from {offset}) does not have its pool_sha256")
        unused = there.keys() - {offset for offset, _, _ in wanted}
        pool += [f"{path}: no ok row points to the member from {offset}" for offset in sorted(unused)]
    return pool, files, hashed


def _members_alone(store: Store, path: str, wanted: dict[Place, str]) -> Iterator[str]:
    for (offset, size, sha256), uid in wanted.items():
        try:
            data = store.read_range(path, offset, size)
        except FileNotFoundError:
            return
        if hashlib.sha256(data).hexdigest() != sha256:
            yield f"{path}: the member of {uid} (from {offset}) does not have its pool_sha256"
