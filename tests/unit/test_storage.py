"""What both stores promise: whole files or none, one winner of a creation, and conditions that hold under faults."""

import hashlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from pipeline.errors import InputError, StoreError
from pipeline.storage import LocalStore, Store, open_store
from tests.fault_proxy import FaultProxy, Rule

FORK = multiprocessing.get_context("fork")


@pytest.fixture
def store(root: str) -> Store:
    return open_store(root)


def _race(root: str, results: "multiprocessing.SimpleQueue[str]", me: str, start: int) -> None:
    store = open_store(root)
    for number in range(start):
        if store.create(f"records/{number}.json", me.encode()):
            results.put(f"{number} {me}")


def test_of_eight_racing_processes_exactly_one_creates_each_file(root: str) -> None:
    results: multiprocessing.SimpleQueue[str] = FORK.SimpleQueue()
    racers = [FORK.Process(target=_race, args=(root, results, f"process {n}", 12)) for n in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    wins = dict(line.split(" ", 1) for line in [results.get() for _ in range(12)])
    assert results.empty()
    assert len(wins) == 12
    store = open_store(root)
    assert all(store.read(f"records/{number}.json").decode() == winner for number, winner in wins.items())


def test_creating_the_same_content_again_counts_as_ours_and_other_content_does_not(store: Store) -> None:
    assert store.create("a/b.json", b"1")
    assert store.create("a/b.json", b"1")
    assert not store.create("a/b.json", b"2")
    assert store.read("a/b.json") == b"1"


@pytest.mark.parametrize("answer", ["reset", 500, 503])
def test_a_creation_whose_reply_is_lost_is_recognised_as_ours(s3: str, s3_proxy: FaultProxy, answer: object) -> None:
    store = open_store(s3)
    s3_proxy.rules = [Rule(answer=answer, after=True, method="PUT", key="mine", count=1)]  # type: ignore[arg-type]
    assert store.create("mine.json", b"1")
    assert s3_proxy.faults == 1
    assert s3_proxy.requests == {"PUT": 2, "GET": 1}


def test_a_swap_whose_reply_is_lost_is_recognised_as_ours(s3: str, s3_proxy: FaultProxy) -> None:
    store = open_store(s3)
    store.replace("lease.json", b"1")
    tagged = store.read_tagged("lease.json")
    assert tagged is not None
    s3_proxy.rules = [Rule(answer="reset", after=True, method="PUT", count=1)]
    assert store.swap("lease.json", b"2", tagged[1])
    assert not store.swap("lease.json", b"3", tagged[1])
    assert store.read("lease.json") == b"2"


@pytest.mark.parametrize(
    "rule",
    [
        Rule(answer=409, count=3),
        Rule(answer=503, count=3),
        Rule(answer="reset", count=3),
        Rule(answer="cut", method="GET", count=3),
        Rule(delay=0.3, count=2),
    ],
    ids=lambda rule: str(rule.answer),
)
def test_passing_faults_are_ridden_out(s3: str, s3_proxy: FaultProxy, tmp_path: Path, rule: Rule) -> None:
    store = open_store(s3)
    s3_proxy.rules = [rule]
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    store.publish(tmp_path / "file", "pool/file.tar")
    assert store.read("pool/file.tar") == b"x" * 100_000
    assert store.size("pool/file.tar") == 100_000
    assert [entry.path for entry in store.files("")] == ["pool/file.tar"]
    assert not (tmp_path / "file").exists()


def test_a_store_that_never_answers_is_an_error_that_names_the_bucket(
    s3: str, s3_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.s3.TRIES", 3)
    s3_proxy.rules = [Rule(answer=503)]
    with pytest.raises(StoreError, match=r"s3://bucket-.*3 tries failed.*SlowDown"):
        open_store(s3).read("x")


def test_a_large_upload_survives_the_loss_of_every_fifth_request(
    s3: str, s3_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.s3.PART_BYTES", 5 << 20)
    s3_proxy.rules = [Rule(answer="reset", share=0.1), Rule(answer=500, after=True, share=0.1)]
    data = os.urandom(1 << 20) * 32
    (tmp_path / "pool.tar").write_bytes(data)
    store = open_store(s3)
    store.publish(tmp_path / "pool.tar", "pool.tar")
    s3_proxy.rules = []
    assert hashlib.sha256(store.read("pool.tar")).digest() == hashlib.sha256(data).digest()


def test_swap_replaces_only_what_was_read(store: Store) -> None:
    assert store.read_tagged("lease.json") is None
    assert not store.swap("lease.json", b"1", "any")
    store.replace("lease.json", b"1")
    tagged = store.read_tagged("lease.json")
    assert tagged is not None
    assert tagged[0] == b"1"
    assert store.swap("lease.json", b"2", tagged[1])
    assert not store.swap("lease.json", b"3", tagged[1])
    assert store.read("lease.json") == b"2"


def test_of_threads_that_swap_one_file_exactly_one_wins(store: Store) -> None:
    store.replace("f", b"start")
    tagged = store.read_tagged("f")
    assert tagged is not None
    wins: list[int] = []

    def swap(number: int) -> None:
        if store.swap("f", str(number).encode(), tagged[1]):
            wins.append(number)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wins) == 1
    assert store.read("f") == str(wins[0]).encode()


def test_a_file_is_deleted_only_while_it_is_what_was_read(store: Store) -> None:
    store.replace("lease.json", b"1")
    old = store.read_tagged("lease.json")
    store.replace("lease.json", b"2")
    new = store.read_tagged("lease.json")
    assert old is not None
    assert new is not None
    assert not store.delete("lease.json", old[1])
    assert store.delete("lease.json", new[1])
    assert store.size("lease.json") is None
    store.delete("lease.json")


def test_ranges_end_with_the_file(store: Store, tmp_path: Path) -> None:
    store.replace("f", b"0123456789")
    assert store.read_range("f", 3, 4) == b"3456"
    assert store.read_range("f", 8, 10) == b"89"
    assert store.read_range("f", 3, 0) == b""
    assert store.read_range("f", 20, 5) == b""
    with pytest.raises(FileNotFoundError):
        store.read_range("none", 0, 1)
    with pytest.raises(FileNotFoundError):
        store.read("none")


def test_listing_finds_every_file_once_whatever_the_pages(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "50")  # the page size of moto's server
    names = {f"units/0001-{number:07}.0.json" for number in range(360)}
    if isinstance(store, LocalStore):
        (store.root / "units").mkdir(parents=True)
        for name in names:
            (store.root / name).touch()
    else:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda name: store.replace(name, b"{}"), names))
    store.replace("unitsx/other", b"")
    found = [entry.path for entry in store.files("units")]
    assert len(found) == len(names)
    assert set(found) == names
    assert store.folders("") == ["units", "unitsx"]
    assert list(store.files("nothing")) == []
    assert store.folders("nothing") == []
    assert len(list(store.files(""))) == len(names) + 1


def test_pyarrow_reads_what_the_store_wrote(store: Store) -> None:
    store.replace("tables/a.bin", b"hello")
    filesystem, base = store.arrow()
    with filesystem.open_input_file(f"{base}/tables/a.bin") as file:
        assert file.read() == b"hello"


PUBLISH = """
import sys
from pathlib import Path
from pipeline.storage import open_store
open_store(sys.argv[1]).publish(Path(sys.argv[2]), "pool/big.tar")
"""


def test_a_publication_killed_in_the_middle_leaves_no_file(s3: str, s3_proxy: FaultProxy, tmp_path: Path) -> None:
    (tmp_path / "big.tar").write_bytes(bytes(40 << 20))
    s3_proxy.rules = [Rule(delay=1.0, key="partNumber")]
    child = subprocess.Popen([sys.executable, "-c", PUBLISH, s3, str(tmp_path / "big.tar")])
    while s3_proxy.faults < 2 and child.poll() is None:
        threading.Event().wait(0.02)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert list(open_store(s3).files("")) == []


def test_a_full_disk_leaves_no_file_and_no_litter(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk to copy from")
    store = LocalStore(tmp_path / "root")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        local = Path(folder) / "big"
        local.write_bytes(bytes(1 << 20))
        code = f"""if True:
            import resource, signal
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
            from pathlib import Path
            from pipeline.storage import LocalStore
            store = LocalStore(Path({str(tmp_path / "root")!r}))
            for write in (lambda: store.publish(Path({str(local)!r}), "pool/big"),
                          lambda: store.create("units/big.json", bytes(2000)),
                          lambda: store.replace("complete.json", bytes(2000))):
                try:
                    write()
                except OSError as error:
                    print(error.errno)
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.split() == ["27"] * 3, done.stderr
        assert local.stat().st_size == 1 << 20
    assert list(store.files("")) == []
    assert list((tmp_path / "root" / ".tmp").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 1000


def test_a_file_from_another_disk_is_moved_whole(tmp_path: Path) -> None:
    other = Path("/dev/shm")
    if not other.is_dir() or other.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second disk")
    with tempfile.TemporaryDirectory(dir=other) as folder:
        (Path(folder) / "f").write_bytes(b"data")
        store = LocalStore(tmp_path)
        store.publish(Path(folder) / "f", "a/f")
        assert store.read("a/f") == b"data"
        assert not (Path(folder) / "f").exists()


def test_a_sound_store_passes_its_check_and_keeps_no_probe(store: Store) -> None:
    store.check()
    assert list(store.files("")) == []


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused(s3: str, s3_proxy: FaultProxy, header: str) -> None:
    s3_proxy.rules = [Rule(strip=header, method="PUT")]
    with pytest.raises(InputError, match=r"ignores If-None-Match or If-Match.*conditional writes"):
        open_store(s3).check()
    assert list(open_store(s3).files("")) == []


@pytest.mark.parametrize("uri", ["s3://no-such-bucket-here/x", "s3:///x", "s3://Not_A_Bucket!/x", "gs://bucket/x"])
def test_a_bucket_that_is_none_is_one_line(s3: str, uri: str) -> None:
    with pytest.raises(InputError) as raised:
        open_store(uri).check()
    assert "\n" not in str(raised.value)
    assert uri.split("/")[2] in str(raised.value)


def test_missing_credentials_are_one_line(s3: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    code = f"from pipeline.storage import open_store; open_store({s3!r}).check()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "InputError: s3://bucket-" in done.stderr.splitlines()[-1]
    assert "redentials" in done.stderr.splitlines()[-1]


def test_a_folder_that_cannot_be_written_is_one_line() -> None:
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o555)
        code = f"""if True:
            import os
            from pathlib import Path
            from pipeline.storage import LocalStore
            if os.geteuid() == 0:
                os.setuid(65534)
            LocalStore(Path({folder!r})).check()
        """
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"InputError: output {folder}: cannot write here (Permission denied)" in done.stderr


def test_scratch_of_a_killed_process_is_cleared_by_the_next(
    s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = """if True:
        import os, signal, sys
        from pipeline.storage import open_store
        (open_store(sys.argv[1]).scratch() / "pool.tar").write_bytes(b"x")
        os.kill(os.getpid(), signal.SIGKILL)
    """
    subprocess.run([sys.executable, "-c", code, s3], env={**os.environ, "TMPDIR": str(tmp_path)}, check=False)
    assert [path.name for path in tmp_path.glob("pairmill-*/*")] == ["pool.tar"]
    own, other = open_store(s3).scratch(), open_store(s3).scratch()
    assert set(tmp_path.glob("pairmill-*")) == {own, other}


def test_clearing_scratch_keeps_what_other_runs_are_writing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    (store.scratch() / "pool.tar").write_bytes(b"x")
    (tmp_path / ".tmp" / "old").write_bytes(b"x")
    os.utime(tmp_path / ".tmp" / "old", (1, 1))
    (tmp_path / ".tmp" / "fresh").write_bytes(b"x")
    store.clear_scratch()
    assert [path.name for path in (tmp_path / ".tmp").iterdir()] == ["fresh"]
