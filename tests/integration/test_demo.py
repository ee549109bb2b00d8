"""The demo's command, small: from nothing to a verified training set, every row ended as the web means it to."""

import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_the_demo_ends_with_every_row_as_expected(tmp_path: Path) -> None:
    output = tmp_path / "out"
    command = [sys.executable, "-m", "jobs.demo", "--rows", "400", "--output", str(output)]
    done = subprocess.run(
        [*command, "--http-port", "0", "--https-port", "0"], cwd=REPOSITORY, capture_output=True, text=True, timeout=280
    )
    assert "400 of 400 rows ended as expected; 0 connections to forbidden addresses" in done.stdout, done.stderr
    assert done.returncode == 0
    assert (output / "contact-sheet.png").read_bytes().startswith(b"\x89PNG")
