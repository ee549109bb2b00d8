"""Consent and hash lists through whole builds: what is refused, what the tables say of it, and what is kept."""

import hashlib
import io
import json
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from pipeline.dedupe.hashes import hash_image
from tests.running import job, table, write_recipe
from tests.signed import image, signed, training
from tests.unit.test_metadata_consent import mining

ADDRESS = "127.64.9.1"
SIGNALS = ["robots", "x_robots_tag", "tdm_reservation", "content_usage", "tdmrep", "iptc_plus", "c2pa"]


def picture(seed: int) -> bytes:
    """A picture that PDQ can tell from another seed's."""
    import numpy as np

    noise = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(noise).resize((300, 260), Image.Resampling.BICUBIC).save(out, "JPEG")
    return out.getvalue()


class ConsentWeb(ThreadingHTTPServer):
    """Hosts under .test at one address; each says in its own way that its image must not be used."""

    def __init__(self) -> None:
        super().__init__((ADDRESS, 0), _Handler)
        self.hits: Counter[str] = Counter()
        listed, copy = picture(1), io.BytesIO()
        Image.open(io.BytesIO(listed)).resize((280, 243)).save(copy, "PNG")
        forbidding = training({"cawg.ai_training": "constrained"}, "cawg.training-mining")
        self.listed = listed
        self.pages: dict[str, tuple[dict[str, str], bytes]] = {
            "plain.test/a.jpg": ({}, picture(2)),
            "plain.test/listed-by-url.jpg": ({}, picture(3)),
            "plain.test/listed-by-bytes.jpg": ({}, picture(4)),
            "plain.test/listed-by-pdq.png": ({}, copy.getvalue()),
            "robots.test/a.jpg": ({}, picture(5)),
            "robots.test/robots.txt": ({}, b"User-agent: *\nDisallow: /"),
            "usage.test/a.jpg": ({}, picture(6)),
            "usage.test/robots.txt": ({}, b"User-agent: *\nAllow: /\nContent-Usage: / train-ai=n"),
            "usage-header.test/a.jpg": ({"Content-Usage": "train-ai=n"}, picture(7)),
            "tag.test/a.jpg": ({"X-Robots-Tag": "noai"}, picture(8)),
            "tdm.test/a.jpg": ({"TDM-Reservation": "1"}, picture(9)),
            "tdmrep.test/a.jpg": ({}, picture(10)),
            "tdmrep.test/.well-known/tdmrep.json": ({}, b'[{"location": "/", "tdm-reservation": 1}]'),
            "xmp.test/a.jpg": ({}, image("JPEG", xmp=mining("DMI-PROHIBITED-GENAIMLTRAINING"))),
            "c2pa.test/a.png": ({}, signed("PNG", forbidding)),
        }

    def url(self, page: str) -> str:
        host, _, path = page.partition("/")
        return f"http://{host}:{self.server_address[1]}/{path}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ConsentWeb

    def do_GET(self) -> None:
        page = self.headers["Host"].partition(":")[0] + self.path
        self.server.hits[page] += 1
        headers, body = self.server.pages.get(page, ({}, b""))
        self.send_response(200 if body else 404)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture(scope="module")
def web() -> Iterator[ConsentWeb]:
    with ConsentWeb() as web:
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield web
        web.shutdown()


def build(web: ConsentWeb, folder: Path, consent: dict[str, bool], blocklists: list[str], **more: Any) -> Path:
    """A ROOT with every image of the web asked for, as far as `download`."""
    images = [page for page in web.pages if page.endswith((".jpg", ".png"))]
    (folder / "list.jsonl").write_text("\n".join(json.dumps({"url": web.url(p), "caption": p}) for p in images))
    (folder / "hosts").write_text("\n".join(f"{ADDRESS} {page.partition('/')[0]}" for page in web.pages))
    download = {
        "allow_addresses": ["127.64.0.0/10"], "hosts_file": str(folder / "hosts"), "consent": consent,
        "blocklists": blocklists, **more,
    }  # fmt: skip
    recipe = write_recipe(folder / "r.yaml", {}, download=download)
    root = folder / "root"
    done = job("build", "--recipe", recipe, "--input", folder / "list.jsonl", "--output", root, "--until", "download")
    assert done.returncode == 0, done.stderr
    return root


def ended(root: Path) -> dict[str, str | None]:
    rows = [*table(root, "outcomes").to_pylist(), *table(root, "rejects").to_pylist()]
    return {row["text"]: row["reason"] for row in rows}


@pytest.fixture(scope="module")
def honoured(web: ConsentWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("honoured")
    by_url = hashlib.md5(web.url("plain.test/listed-by-url.jpg").encode()).hexdigest()
    by_bytes = hashlib.sha1(web.pages["plain.test/listed-by-bytes.jpg"][1]).hexdigest()
    (folder / "known.txt").write_text(f"{by_url}\nsha1:{by_bytes}\n")
    (folder / "pdq.txt").write_text(f"pdq:{hash_image(web.listed).pdq}  # an image at another size\n")
    lists = [str(folder / "known.txt"), str(folder / "pdq.txt")]
    web.hits.clear()
    # No hash but sha256 in the tables: the lists' own kinds are computed for matching all the same.
    return build(web, folder, {"tdmrep": True}, lists, compute_hash=["sha256"])


def test_every_signal_refuses_its_image_and_no_other(web: ConsentWeb, honoured: Path) -> None:
    assert ended(honoured) == {
        "plain.test/a.jpg": None, "plain.test/listed-by-url.jpg": "blocklisted",
        "plain.test/listed-by-bytes.jpg": "blocklisted", "plain.test/listed-by-pdq.png": "blocklisted",
        "robots.test/a.jpg": "robots", "usage.test/a.jpg": "opt_out", "usage-header.test/a.jpg": "opt_out",
        "tag.test/a.jpg": "opt_out", "tdm.test/a.jpg": "opt_out", "tdmrep.test/a.jpg": "opt_out",
        "xmp.test/a.jpg": "opt_out", "c2pa.test/a.png": "opt_out",
    }  # fmt: skip


def test_the_consent_table_says_what_was_found_where_and_by_which_rule(web: ConsentWeb, honoured: Path) -> None:
    texts = {row["uid"]: row["text"] for row in table(honoured, "pairs").to_pylist()}
    denied = {
        texts[row["uid"]]: (row["signal"], row["value"], row["source"])
        for row in table(honoured, "consent").to_pylist()
        if row["verdict"] == "deny"
    }
    assert denied == {
        "robots.test/a.jpg": ("robots", "disallow", web.url("robots.test/robots.txt")),
        "usage.test/a.jpg": ("content_usage", "train-ai=n", web.url("usage.test/robots.txt")),
        "usage-header.test/a.jpg": ("content_usage", "train-ai=n", "content-usage"),
        "tag.test/a.jpg": ("x_robots_tag", "noai", "x-robots-tag"),
        "tdm.test/a.jpg": ("tdm_reservation", "1", "tdm-reservation"),
        "tdmrep.test/a.jpg": ("tdmrep", "/ 1", web.url("tdmrep.test/.well-known/tdmrep.json")),
        "xmp.test/a.jpg": ("iptc_plus", "http://ns.useplus.org/ldf/vocab/DMI-PROHIBITED-GENAIMLTRAINING", "xmp"),
        "c2pa.test/a.png": ("c2pa", "cawg.ai_training=constrained", "c2pa"),
    }
    assert all(row["rule_version"] for row in table(honoured, "consent").to_pylist())


def test_a_row_says_which_signals_were_looked_at(honoured: Path) -> None:
    told = {row["text"]: (row["consent_ok"], row["consent_signals"]) for row in table(honoured, "outcomes").to_pylist()}
    assert told["plain.test/a.jpg"] == (True, ",".join(SIGNALS))
    assert told["xmp.test/a.jpg"] == told["c2pa.test/a.png"] == (False, ",".join(SIGNALS))
    assert told["tag.test/a.jpg"] == (False, ",".join(SIGNALS[:5]))
    assert told["tdmrep.test/a.jpg"] == (False, "robots,tdmrep")
    assert told["robots.test/a.jpg"] == (False, "robots")


def test_what_is_known_beforehand_is_not_asked_for(web: ConsentWeb, honoured: Path) -> None:
    never = ["plain.test/listed-by-url.jpg", "robots.test/a.jpg", "usage.test/a.jpg", "tdmrep.test/a.jpg"]
    assert [web.hits[page] for page in never] == [0, 0, 0, 0]
    assert web.hits["tdmrep.test/.well-known/tdmrep.json"] == 1
    (row,) = [row for row in table(honoured, "rejects").to_pylist() if row["reason"] == "blocklisted"]
    assert (row["text"], row["status"]) == ("plain.test/listed-by-url.jpg", "refused")


def test_no_refused_byte_is_stored(web: ConsentWeb, honoured: Path) -> None:
    rows = table(honoured, "outcomes").to_pylist()
    assert [row["text"] for row in rows if row["pool_file"]] == ["plain.test/a.jpg"]
    pools = list(honoured.glob("download/*/pool/*"))
    assert sum(pool.stat().st_size for pool in pools) < 100_000
    for page, (_, body) in web.pages.items():
        if page.endswith((".jpg", ".png")) and page != "plain.test/a.jpg":
            assert not any(body[-200:] in path.read_bytes() for path in honoured.rglob("*") if path.is_file())


def test_switched_off_by_name_no_signal_is_looked_at(web: ConsentWeb, tmp_path: Path) -> None:
    web.hits.clear()
    root = build(web, tmp_path, dict.fromkeys(SIGNALS, False), [])
    assert set(ended(root).values()) == {None}
    assert {row["consent_signals"] for row in table(root, "outcomes").to_pylist()} == {None}
    assert table(root, "consent").num_rows == 0
    assert not any(page.endswith(("robots.txt", "tdmrep.json")) for page in web.hits)


@pytest.mark.parametrize("line", ["not a hash", "pdq:12"])
def test_a_list_that_cannot_be_used_ends_the_run_before_anything_is_asked_or_made(
    web: ConsentWeb, tmp_path: Path, line: str
) -> None:
    web.hits.clear()
    (tmp_path / "known.txt").write_text(line)
    (tmp_path / "l.txt").write_text(web.url("plain.test/a.jpg"))
    recipe = write_recipe(tmp_path / "r.yaml", {}, download={"blocklists": [str(tmp_path / "known.txt")]})
    done = job("build", "--recipe", recipe, "--input", tmp_path / "l.txt", "--output", tmp_path / "root")
    assert (done.returncode, "known.txt:1" in done.stderr, "Traceback" in done.stderr) == (2, True, False)
    assert (dict(web.hits), [path for path in (tmp_path / "root").rglob("*") if path.is_file()]) == ({}, [])
