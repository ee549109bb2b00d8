"""A suite, measured: results.parquet, results.csv, report.html in a folder; features are kept beside them."""

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pipeline.clip import Clip, load
from pipeline.errors import InputError
from pipeline.evaluate import results
from pipeline.evaluate.datasets import Dataset, find, open_dataset, tars
from pipeline.evaluate.overlap import overlap, read_overlaps
from pipeline.evaluate.report import page
from pipeline.evaluate.results import Row, Run
from pipeline.evaluate.shifts import effective_robustness, read_references
from pipeline.evaluate.suite import Suite, load_suite
from pipeline.evaluate.workers import Measured, Work, measured, measured_on_ray, on_ray


@dataclass(frozen=True)
class Request:
    model: str
    suite: str
    out: Path
    arch: str | None = None
    data: str | None = None
    only: tuple[str, ...] = ()
    overlaps: str | None = None
    compare: tuple[str, ...] = ()


def run(request: Request, report: Callable[[str], None] = lambda line: print(line, file=sys.stderr)) -> Run:
    """Everything is looked at before the first image is read; on a Ray cluster where RAY_ADDRESS names one.

    Raises InputError.
    """
    suite, datasets, base = _planned(request)
    others = [results.read(place) for place in request.compare]
    references = read_references(base / suite.references) if suite.references else {}
    clip = load(request.model, request.arch)
    overlapping = read_overlaps(request.overlaps, Path(request.model)) if request.overlaps else {}
    try:
        request.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {request.out}: cannot be made: {error.strerror}") from None
    sha256 = clip.encoder.weights_sha256
    made = Run(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{sha256[:8]}", request.model, sha256, suite.name)
    model = str(Path(request.model).absolute()) if Path(request.model).exists() else request.model
    work = Work(model, request.arch, suite, datasets, request.out.absolute() / "features")
    found: dict[str, Measured] = {}
    for one in measured_on_ray(work) if on_ray() else _here(work, clip):
        found[one.name] = one
        made.rows.extend(one.rows)
        report(f"{len(found)}/{len(datasets)} {one.name}: {_told(one.rows)}")
        results.write(made.table(), request.out)
    found = {name: found[name] for name in datasets}
    made.rows[:] = [row for one in found.values() for row in one.rows]  # in the suite's order, whoever was first
    made.rows.extend(_robustness(references, suite, made.rows))
    made.rows.extend(_overlaps(overlapping, found))
    table = made.table()
    results.write(table, request.out)
    shown = [one for measured_one in found.values() for one in measured_one.shown]
    results.replace(request.out / "report.html", page(table, others, shown).encode())
    return made


def _here(work: Work, clip: Clip) -> Iterator[Measured]:
    for names in work.chains():
        yield from measured(work, clip, names)


def _planned(request: Request) -> tuple[Suite, dict[str, Dataset], Path]:
    """The datasets in an order that has references before their shifts. Raises InputError for what is not there."""
    suite, base = load_suite(request.suite)
    unknown = [name for name in request.only if name not in suite.tasks]
    if unknown:
        raise InputError(f"--only {unknown[0]}: suite {suite.name} has {', '.join(suite.tasks)}")
    root = request.data or suite.data
    if root is None:
        raise InputError(f"suite {suite.name} does not say where its datasets lie; give --data DIR")
    root_path = (Path(root) if request.data else base / root).absolute()
    if not root_path.is_dir():
        raise InputError(f"--data {root_path}: there is no such folder")
    wanted = [name for name in suite.tasks if name in request.only or not request.only]
    wanted.sort(key=lambda name: suite.tasks[name].shift_of is not None)
    datasets = {}
    for name in wanted:
        dataset = open_dataset(name, find(name, root_path, suite.tasks[name].folder))
        tars(dataset.folder / suite.tasks[name].split)
        datasets[name] = dataset
    return suite, datasets, base


def _told(rows: Sequence[Row]) -> str:
    return ", ".join(
        f"{row.setting} {row.metric} {row.value:.4f}" for row in rows if row.main and row.value is not None
    )


def _robustness(references: dict[str, dict[str, float]], suite: Suite, rows: Sequence[Row]) -> list[Row]:
    """Effective robustness of zero-shot, and of the probe fitted on the reference, at each shift."""
    top1 = {(row.task, row.setting): row for row in rows if row.metric == "top1" and row.group is None}
    made = []
    for name, task in suite.tasks.items():
        for setting, there in (("zero_shot", "zero_shot"), ("reference_probe", "probe")):
            here, before = top1.get((name, setting)), top1.get((task.shift_of or "", there))
            if here is None or before is None or here.value is None or before.value is None:
                continue
            made.append(Row(name, setting, "drop", before.value - here.value, here.n, note=f"from {task.shift_of}"))
            if references:
                value, models = effective_robustness(references, str(task.shift_of), name, before.value, here.value)
                made.append(Row(name, setting, "effective_robustness", value, here.n, note=f"against {models} models"))
    return made


def _overlaps(overlapping: dict[str, set[str]], found: dict[str, Measured]) -> list[Row]:
    asked = []
    for name, one in found.items():
        keys = overlapping.get(name, overlapping.get(name.replace("/", "-")))
        if keys is not None and one.right is not None:
            asked.append((name, one.keys, one.right, keys))
    if overlapping and not asked:
        raise InputError(f"--overlaps: its evaluation sets are {', '.join(overlapping)}; none is a task of the suite")
    return [row for name, keys, right, mine in asked for row in overlap(name, keys, right, mine, len(asked))]
