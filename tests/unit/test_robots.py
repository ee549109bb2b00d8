"""robots.txt: what its text says to us."""

import pytest

from pipeline.download.robots import MAX_BYTES, RobotsRules

ORIGIN = "http://a.test"


def rules(text: str | bytes, token: str = "pairmill") -> RobotsRules:
    return RobotsRules(f"{ORIGIN}/robots.txt", text.encode() if isinstance(text, str) else text, token)


@pytest.mark.parametrize(
    ("text", "path", "allowed"),
    [
        ("", "/a", True),
        ("User-agent: *\nDisallow: /", "/a", False),
        ("User-agent: *\nDisallow:", "/a", True),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/c", False),
        ("User-agent: *\nDisallow: /*.png$", "/x.png", False),
        ("User-agent: *\nDisallow: /*.png$", "/x.png?y", True),
        ("User-agent: other\nDisallow: /", "/a", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: PairMill\nAllow: /", "/a", True),
        ("User-agent: *\nAllow: /\n\nUser-agent: pairmill\nDisallow: /", "/a", False),
        ("\ufeffUser-agent: *\nDisallow: /", "/a", False),
        ("<html>not a robots.txt</html>", "/a", True),
    ],
)
def test_the_longest_matching_rule_of_our_group_decides(text: str, path: str, allowed: bool) -> None:
    assert rules(text).allowed(ORIGIN + path) is allowed


def test_what_lies_beyond_500_kib_is_not_read() -> None:
    text = "User-agent: *\nAllow: /\n" + "# padding\n" * (MAX_BYTES // 10) + "User-agent: *\nDisallow: /\n"
    assert rules(text).allowed(f"{ORIGIN}/a")


def test_bytes_that_are_not_text_allow_what_they_do_not_disallow() -> None:
    assert rules(b"\xff\xfe\x00 garbage \x80").allowed(f"{ORIGIN}/a")


@pytest.mark.parametrize(
    ("text", "path", "found"),
    [
        ("User-agent: *\nContent-Usage: train-ai=n", "/a", ["train-ai=n"]),
        ("User-agent: *\ncontent-usage : search=y, train-ai=n # why", "/a", ["search=y, train-ai=n"]),
        ("User-agent: *\nContent-Usage: /art/ train-ai=n", "/art/a", ["train-ai=n"]),
        ("User-agent: *\nContent-Usage: /art/ train-ai=n", "/a", []),
        ("User-agent: *\nContent-Usage: train-ai=n\nContent-Usage: /free/ train-ai=y", "/free/a", ["train-ai=y"]),
        ("User-agent: *\nContent-Usage: train-ai=y\nContent-Usage: train-ai=n", "/a", ["train-ai=y", "train-ai=n"]),
        ("User-agent: other\nContent-Usage: train-ai=n", "/a", []),
        ("User-agent: other\nUser-agent: pairmill\nContent-Usage: train-ai=n", "/a", ["train-ai=n"]),
        ("User-agent: *\nContent-Usage: train-ai=n\nUser-agent: pairmill\nAllow: /", "/a", []),
        ("User-agent: *\nContent-Usage: /*.png$ train-ai=n", "/a.png", ["train-ai=n"]),
        ("Content-Usage: train-ai=n\nUser-agent: pairmill\nAllow: /", "/a", ["train-ai=n"]),
        ("User-agent: *\nContent-Usage: /\ttrain-ai=n", "/a", ["train-ai=n"]),
        ("User-agent: *\nContent-Usage: / train-ai=y\nContent-Usage: /%61rt/ train-ai=n", "/art/a", ["train-ai=n"]),
        ("User-agent: *\nContent-Usage: /art", "/art", [""]),
    ],
)
def test_content_usage_lines_are_read_by_group_and_path(text: str, path: str, found: list[str]) -> None:
    assert rules(text).content_usage(ORIGIN + path) == found


def test_a_robots_txt_that_answers_with_an_error_denies_everything() -> None:
    assert not RobotsRules(f"{ORIGIN}/robots.txt", denied="HTTP 503").allowed(f"{ORIGIN}/a")
