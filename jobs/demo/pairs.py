"""The list: rows of URL and alt text, and the (status, reason) each of them has to end in."""

import csv
import io
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Final
from urllib.parse import quote

from jobs.demo import captions
from jobs.demo.hosts import HIDES, PLAIN, Host, make_hosts
from jobs.demo.kinds import KINDS
from jobs.demo.pictures import picture_count, picture_name, subjects
from schemas.statuses import STATUS_OF

PICTURE: Final = "picture"
BEFORE_RULES: Final = ("missing_text", "bad_url", "bad_scheme")
"""Reasons that ingest gives before it asks the prefilter."""


@dataclass(frozen=True, slots=True)
class Pair:
    url: str | None
    caption: str | None
    language: str
    kind: str
    """PICTURE, or a key of KINDS."""
    host: str
    reason: str | None = None
    """Why the row cannot end ok, under the default recipe."""

    @property
    def expected(self) -> tuple[str, str | None]:
        """(status, reason) under the default recipe."""
        return ("ok", None) if self.reason is None else (STATUS_OF[self.reason], self.reason)

    @property
    def expected_in_demo(self) -> tuple[str, str | None]:
        """(status, reason) under jobs/recipes/demo.yaml, whose prefilter turns some texts away."""
        if self.reason not in BEFORE_RULES and captions.breaks_text_rule(self.caption or ""):
            return STATUS_OF["text_rule"], "text_rule"
        return self.expected


def make_pairs(rows: int, seed: int, http_port: int, https_port: int) -> list[Pair]:
    """The list, in order: nine rows in ten are pictures, the others go over every kind. Same arguments, same list."""
    rng = random.Random(f"pairs {seed}")
    hosts = make_hosts(rows)
    ports = {"http": http_port, "https": https_port}
    faulty = list(_faulty(rows, seed, hosts, ports, rng))
    copies = max(2, rows // 100)
    good = list(_good(rows - len(faulty) - copies, rows, seed, hosts, ports, rng))
    listed = [*good, *faulty]
    listed += [_copied(pair, rng) for pair in rng.sample(good, copies)]
    rng.shuffle(listed)
    return list(_judge_duplicates(listed))


def _base(host: Host, ports: dict[str, int]) -> str:
    return f"{host.scheme}://{host.name}:{ports[host.scheme]}"


def _good(
    rows: int, scale: int, seed: int, hosts: list[Host], ports: dict[str, int], rng: random.Random
) -> Iterator[Pair]:
    """Pictures on plain hosts of very different sizes; one row in twelve gives a URL another text."""
    plain = [host for host in hosts if host.role == PLAIN]
    weights = [(rank + 10) ** -0.7 for rank in range(len(plain))]
    rng.shuffle(weights)
    chosen = iter(rng.choices(plain, weights, k=rows))
    count = picture_count(scale)
    earlier: list[tuple[Pair, int]] = []
    for row in range(rows):
        if row % 12 == 11:
            first, picture = rng.choice(earlier)
            text, language = captions.write(subjects(seed, picture), rng)
            if text != first.caption:
                yield replace(first, caption=text, language=language)
                continue
        number = len(earlier)
        picture = number % count
        host = next(chosen)
        text, language = captions.write(subjects(seed, picture), rng)
        pair = Pair(
            f"{_base(host, ports)}/pictures/{number // count}/{picture_name(picture)}",
            text,
            language,
            PICTURE,
            host.name,
        )
        earlier.append((pair, picture))
        yield pair


def _faulty(
    rows: int, seed: int, hosts: list[Host], ports: dict[str, int], rng: random.Random
) -> Iterator[Pair]:  # fmt: skip
    kinds = [name for name in KINDS if name != "duplicate"]
    rare = max(1, rows // 4000)
    each = max(1, round(rows * 0.1 / sum(kind.reason is not None for kind in KINDS.values())))
    plain = [host for host in hosts if host.role == PLAIN]
    for kind in kinds:
        own = [host for host in hosts if host.role == kind]
        hiding = [host for number, host in enumerate(plain) if number % 3 == HIDES]
        where = cycle(own or (hiding if kind == "disallowed-path" else rng.sample(plain, len(plain))))
        for number in range(rare if KINDS[kind].rare else each):
            host = next(where)
            text, language = captions.write(subjects(seed, rng.randrange(picture_count(rows))), rng)
            pair = Pair(None, text, language, kind, host.name, KINDS[kind].reason)
            if KINDS[kind].place == "list":
                yield _wrong_in_list(pair, number, _base(host, ports), ports["http"])
            elif KINDS[kind].place == "host":
                yield replace(pair, url=f"{_base(host, ports)}/pictures/{kind}/{picture_name(number)}")
            else:
                yield replace(pair, url=f"{_base(host, ports)}/{kind}/{number:04d}.{KINDS[kind].extension}")


def _wrong_in_list(pair: Pair, number: int, base: str, http_port: int) -> Pair:
    url = f"{base}/pictures/list/{number:05d}.jpg"
    match pair.kind:
        case "no-text":
            return replace(pair, url=url, caption=(None, "", " \t ")[number % 3], language="")
        case "no-url":
            return replace(pair, url=(None, "", "  ")[number % 3], host="")
        case "bad-url":
            bad = (f"pictures/{number}.jpg", f"//{pair.host}/{number}.jpg", f"http:///{number}.jpg", "http://[::1/x.jpg",
                   f"www.{pair.host}/{number}.jpg", f"http://a b/{number}.jpg")  # fmt: skip
            return replace(pair, url=bad[number % len(bad)], host="")
        case "bad-scheme":
            bad = ("file:///etc/hostname", f"ftp://{pair.host}/{number}.jpg", "data:image/gif;base64,R0lGODlhAQ==",
                   f"gopher://{pair.host}/{number}", "javascript:alert(1)", "FILE:///etc/passwd")  # fmt: skip
            return replace(pair, url=bad[number % len(bad)], host="")
        case _:
            private = ("127.0.0.1", "127.1", "2130706433", "0x7f.0.0.1", "0177.0.0.1", "[::1]", "[::ffff:127.0.0.1]")
            address = private[number % len(private)]
            return replace(pair, url=f"http://{address}:{http_port}/pictures/list/{number:05d}.jpg", host="")


def _copied(pair: Pair, rng: random.Random) -> Pair:
    """The same pair again: as it was, with a fragment, or with the scheme in capitals; all are fetched alike."""
    assert pair.url is not None
    scheme, rest = pair.url.split(":", 1)
    url = rng.choice((pair.url, f"{pair.url}#main", f"{scheme.upper()}:{rest}"))
    return replace(pair, url=url, kind="duplicate")


def _judge_duplicates(listed: list[Pair]) -> Iterator[Pair]:
    """Of pairs with the same fetched URL and text the first stays, whichever it is."""
    seen: set[tuple[str, str]] = set()
    for pair in listed:
        if pair.reason in BEFORE_RULES:
            yield pair
            continue
        assert pair.url is not None
        assert pair.caption is not None
        key = (fetched_as(pair.url), pair.caption)
        yield (
            replace(pair, kind="duplicate", reason="duplicate")
            if key in seen
            else (replace(pair, kind=PICTURE) if pair.kind == "duplicate" else pair)
        )
        seen.add(key)


def fetched_as(url: str) -> str:
    """The URL as a client asks for it, for the forms that occur in the list."""
    scheme, rest = url.split("#", 1)[0].split(":", 1)
    return f"{scheme.lower()}:{quote(rest, safe='/:[]%?=')}"


def to_jsonl(pairs: list[Pair]) -> str:
    """The list as JSON lines of url and caption."""
    return "".join(json.dumps({"url": pair.url, "caption": pair.caption}, ensure_ascii=False) + "\n" for pair in pairs)


def to_csv(pairs: list[Pair]) -> str:
    """The list as CSV with a header; a missing URL or text is an empty field."""
    file = io.StringIO()
    rows = csv.writer(file)
    rows.writerow(("url", "caption"))
    rows.writerows((pair.url, pair.caption) for pair in pairs)
    return file.getvalue()
