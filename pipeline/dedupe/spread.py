"""The search by tasks on a Ray cluster, for sets that would keep one machine busy too long; equal to one process.

A task takes some of the 150 tables over all points, which lie once in each node's object store (about 100 bytes a row),
and gives the best neighbours that it found; the driver takes the minimum. Tasks hold no state and know nothing of each
other: one that is run twice changes nothing.

Cost, from tests/benchmarks/dedupe.py on two busy cores of an EPYC (scope `image`, CPU seconds): 1 million rows 5.6 for
the tables and 4.1 for 10 million candidate pairs, 10 million rows 92 for the tables and 123 for 411 million pairs. So
tables cost 6 to 9 us a row, growing a little faster than the rows as caches overflow; a pair costs 0.3 to 0.4 us, and
pairs of strangers grow as the square. For 100 million rows that gives 1,200 s for the tables and 35 billion pairs in
10,500 to 14,000 s: 3 to 4 CPU hours, a quarter of an hour by 16 cores; memory 250 bytes a row beside the input's 170
(45 GB); extrapolated, not measured. Scope `pair` costs what its large groups of equal texts cost.
Beyond one node: tasks as here while a node holds the points. After that, with scope `pair` shuffle the rows by a hash
of their text, since no pair crosses texts; with scope `image` shuffle (key, row, hash) of each table by key, 60 bytes a
row and table, or 900 GB for 100 million rows. From a billion rows on, pairs rule: 4 groups in place of 5 make 120
tables with keys of 32 bits, exact to 19 bits, that leave a hundredth of the pairs.
"""

import numpy as np

from pipeline.dedupe.search import TABLES, Effort, Flags, Index, Points, best_neighbours


def parts(count: int) -> list[range]:
    """The tables in `count` runs, as even as can be."""
    return [range(TABLES * part // count, TABLES * (part + 1) // count) for part in range(count)]


def best_neighbours_on_ray(
    points: Points, asks: Flags, answers: Flags, radius: int, tasks: int, threads: int = 1
) -> tuple[Index, Effort]:
    """What `best_neighbours` gives, by `tasks` tasks of `threads` cores each on the Ray cluster we are connected to."""
    import ray

    task = ray.remote(num_cpus=threads)(_part)
    shared = ray.put((points, asks, answers))
    best, effort = np.full(len(asks), len(asks), np.int64), Effort()
    for reference in [task.remote(shared, radius, threads, tables) for tables in parts(tasks)]:
        rows, found, spent = ray.get(reference)
        best[rows] = np.minimum(best[rows], found)
        effort.add(spent)
    return best, effort


def _part(shared: tuple[Points, Flags, Flags], radius: int, threads: int, tables: range) -> tuple[Index, Index, Effort]:
    points, asks, answers = shared
    best, effort = best_neighbours(points, asks, answers, radius, threads, tables)
    rows = np.flatnonzero(best < len(best))
    return rows, best[rows], effort
