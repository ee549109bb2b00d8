"""What several files of integration tests need and is dear to make."""

from pathlib import Path

import pytest

from tests.adoptable import ROWS, add_datacomp_metadata, make_download


@pytest.fixture(scope="session")
def download(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DataComp-like download: shards by img2dataset, metadata beside them. The web it came from is gone."""
    folder = make_download(tmp_path_factory.mktemp("download") / "datacomp", ROWS, samples=100)
    add_datacomp_metadata(folder)
    return folder
