"""The suites that are shipped."""

import pytest

from pipeline.evaluate.suite import load_suite, suite_names

COUNTS = {"clip27": 27, "shift7": 8, "datacomp38": 37, "fairface": 1}  # shift7: with ImageNet; datacomp38: no WinoGAViL


@pytest.mark.parametrize("name", suite_names())
def test_a_shipped_suite_is_one_and_has_the_datasets_of_its_paper(name: str) -> None:
    suite, _ = load_suite(name)

    assert len(suite.tasks) == COUNTS[name]
    assert suite.data is None  # --data says where


def test_the_four_of_the_paper_and_datacomp_are_there() -> None:
    assert suite_names() == sorted(COUNTS)


def test_the_papers_metrics_are_those_of_its_table() -> None:
    mains = {name: task.main for name, task in load_suite("clip27")[0].tasks.items() if task.main}

    assert {name for name, main in mains.items() if main == "mean_per_class"} == {
        "fgvc_aircraft", "vtab/pets", "vtab/caltech101", "vtab/flowers",
    }  # fmt: skip
    assert (mains["voc2007_multilabel"], mains["kinetics700"], mains["hateful_memes"]) == (
        "map11", "top1_top5", "roc_auc",
    )  # fmt: skip
