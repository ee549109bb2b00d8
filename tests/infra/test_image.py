"""The image's steps, read as text: no container engine takes part in any test."""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import yaml

from tests.running import REPOSITORY

STEPS = [
    tuple(step.split(maxsplit=1))
    for step in re.sub(r"\\\n\s*", "", (REPOSITORY / "infra" / "Dockerfile").read_text()).splitlines()
    if step and not step.startswith("#")
]
"""(instruction, the rest) of every step."""
PROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]


def told(instruction: str) -> list[str]:
    return [rest for name, rest in STEPS if name == instruction]


def copied() -> list[str]:
    """What the image is given of the repository."""
    sources = [shlex.split(rest)[:-1] for rest in told("COPY") if "--from" not in rest]
    return [source for line in sources for source in line]


def test_the_base_is_pinned_to_a_python_that_pairmill_takes_and_the_same_in_both_stages() -> None:
    (base,) = {rest.split()[0] for rest in told("FROM")}
    version = re.fullmatch(r"python:(\d+\.\d+)\.\d+-slim-bookworm", base)
    assert version
    assert PROJECT["requires-python"] == f">={version[1]}"


def test_the_install_is_the_readmes_with_the_versions_the_tests_pass_with() -> None:
    (install,) = [shlex.split(rest) for rest in told("RUN") if "pip install" in rest]
    assert install[1:-1] == ["install", "--no-cache-dir", "--constraint", "constraints.txt"]
    place, extras = re.fullmatch(r"(.+)\[(.+)\]", install[-1]).groups()  # type: ignore[union-attr]
    assert f"pip install {place} " in (REPOSITORY / "README.md").read_text()
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])
    assert "constraints.txt" in copied()


def test_the_compiler_is_what_the_makefile_installs_and_stays_out_of_the_image() -> None:
    debian = [rest for rest in told("RUN") if "apt-get" in rest]
    makefile = (REPOSITORY / "Makefile").read_text()
    command = "apt-get -q update && apt-get -q install -y --no-install-recommends"
    assert command in makefile
    assert "$(APT_INSTALL) g++" in makefile
    assert all(rest.startswith(command) for rest in debian)
    last_stage = max(place for place, (name, _) in enumerate(STEPS) if name == "FROM")
    assert not any("g++" in rest for _, rest in STEPS[last_stage:])


def test_the_image_runs_as_the_user_of_the_pods() -> None:
    cluster = list(yaml.safe_load_all((REPOSITORY / "infra" / "kuberay" / "cluster.yaml").read_text()))[-1]
    user = cluster["spec"]["headGroupSpec"]["template"]["spec"]["securityContext"]
    assert told("USER") == [f"{user['runAsUser']}:{user['runAsGroup']}"]
    assert [name for name, _ in STEPS[-3:]] == ["ENV", "USER", "WORKDIR"]  # nothing is done as root after it


def test_the_context_is_what_the_steps_copy_and_nothing_else() -> None:
    lines = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert next(line for line in lines if not line.startswith("#")) == "*"
    assert sorted(line[1:] for line in lines if line.startswith("!")) == sorted(copied())


def test_what_is_copied_installs_every_module_and_recipe(tmp_path: Path) -> None:
    for source in copied():
        path = REPOSITORY / source
        if path.is_dir():
            shutil.copytree(path, tmp_path / source, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, tmp_path / source)
    built = subprocess.run(
        [sys.executable, "-c", "import sys; from setuptools import build_meta; print(build_meta.build_wheel('.'))"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    names = set(zipfile.ZipFile(next(tmp_path.glob("*.whl"))).namelist())
    ours = {
        str(path.relative_to(tmp_path))
        for folder in ("jobs", "pipeline", "schemas")
        for path in (tmp_path / folder).rglob("*")
        if path.suffix in (".py", ".yaml") or path.parent.name == "configs"
    }
    assert ours <= names
