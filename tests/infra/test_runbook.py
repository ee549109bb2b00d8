"""The runbook speaks of what there is."""

import re

import pytest

from tests.running import REPOSITORY

TEXT = (REPOSITORY / "infra" / "README.md").read_text()
CODE = "\n".join(path.read_text() for folder in ("jobs", "pipeline") for path in (REPOSITORY / folder).rglob("*.py"))
MESSAGES = re.findall(r"^\| `([^`]+)`", TEXT.split("| it says |")[1].split("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize("message", MESSAGES)
def test_its_messages_are_the_jobs_own(message: str) -> None:
    for piece in message.split("…"):
        assert piece.strip() in CODE


def test_the_files_it_names_are_there() -> None:
    named = set(re.findall(r"infra/[\w/]+\.yaml|infra/Dockerfile", TEXT)) | {
        f"infra/{path}" for path in re.findall(r"\]\(([\w/]+)\)", TEXT)
    }
    assert {"infra/kuberay/cluster.yaml", "infra/Dockerfile"} <= named
    assert [path for path in named if not (REPOSITORY / path).exists()] == []
    assert all(f"infra/kuberay/{path.name}" in named for path in (REPOSITORY / "infra" / "kuberay").glob("*.yaml"))


def test_its_sizes_are_the_readmes_rates() -> None:
    readme = (REPOSITORY / "README.md").read_text()
    assert "526 images/s" in readme
    assert "254 images/s" in readme
    per_cpu = {"http": 526 // 2, "https": 254 // 2}
    assert f"{per_cpu['http']} images/s over http, {per_cpu['https']} over https" in TEXT
    assert f"{900_000 / per_cpu['http'] / 3600:.1f} CPU-hours" in TEXT
    assert f"{per_cpu['http'] * 138 * 1024 / 1e6:.0f} MB/s" in TEXT
    assert f"{900_000 * 138 * 1024 / 1e9:.0f} GB" in TEXT
