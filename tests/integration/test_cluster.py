"""On a cluster: `ray job submit` against a head started on loopback."""

import json
import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.demo.web import Web
from tests.running import job, write_recipe

TOKEN = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": uuid.uuid4().hex}
"""Ray 2.60 protects a head by a token; it and everybody who talks to it know ours."""
ENV = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"} | TOKEN
RAY = str(Path(sys.executable).parent / "ray")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    with Web(tmp_path_factory.mktemp("web"), rows=300, seed=7) as web:
        yield web


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The address of the Jobs API of a Ray head of our own; ended by its own process group."""
    port, dashboard = free_port(), free_port()
    process = subprocess.Popen(
        [RAY, "start", "--head", "--block", "--node-ip-address=127.0.0.1", f"--port={port}", "--num-cpus=2",
         "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--disable-usage-stats"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True, env=ENV,
    )  # fmt: skip
    address = f"http://127.0.0.1:{dashboard}"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        listed = subprocess.run([RAY, "job", "list", "--address", address], capture_output=True, check=False, env=ENV)
        if listed.returncode == 0:
            break
        time.sleep(0.5)
    yield address
    process.terminate()
    process.wait(30)


def submit(address: str, name: str, *arguments: object, wait: bool = True) -> subprocess.CompletedProcess[str]:
    flags = ["--address", address, "--submission-id", name, *([] if wait else ["--no-wait"])]
    command = [sys.executable, "-m", "jobs.build", *map(str, arguments)]
    return subprocess.run(
        [RAY, "job", "submit", *flags, "--", *command],
        capture_output=True, text=True, timeout=240, check=False, env=ENV,
    )  # fmt: skip


def status(address: str, name: str) -> str:
    done = subprocess.run(
        [RAY, "job", "status", "--address", address, name], capture_output=True, text=True, check=False, env=ENV
    )
    return done.stdout + done.stderr


def test_a_submitted_build_succeeds_and_verifies(head: str, web: Web, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    done = submit(head, "good", "--recipe", recipe, "--input", web.list_path, "--output", tmp_path / "root")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCEEDED" in status(head, "good").upper()
    assert job("verify", tmp_path / "root").returncode == 0
    assert json.loads((tmp_path / "root" / "run.json").read_text())["ray_job"] == "good"


def test_a_bad_recipe_fails_the_job_with_exit_code_2_and_its_line_visible(head: str, web: Web, tmp_path: Path) -> None:
    recipe = tmp_path / "bad.yaml"
    recipe.write_text("download: {timout: 3}\n")
    done = submit(head, "bad", "--recipe", recipe, "--input", web.list_path, "--output", tmp_path / "root")
    assert done.returncode != 0
    said = done.stdout + done.stderr + status(head, "bad")
    assert "did you mean timeout?" in said
    assert "exit code 2" in said


def test_a_stopped_job_submitted_again_resumes(head: str, web: Web, tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path / "r.yaml", web.recipe)
    root = tmp_path / "root"
    arguments = ("--recipe", recipe, "--input", web.list_path, "--output", root)
    assert submit(head, "stopped", *arguments, wait=False).returncode == 0
    deadline = time.monotonic() + 90
    while not list(root.glob("download/*/attempts/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    subprocess.run(
        [RAY, "job", "stop", "--address", head, "stopped"], capture_output=True, check=True, timeout=120, env=ENV
    )
    again = submit(head, "again", *arguments)
    assert again.returncode == 0, again.stdout + again.stderr
    assert job("verify", root).returncode == 0
