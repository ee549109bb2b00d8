"""The search by tasks on a Ray cluster, for sets that would keep one machine busy too long; equal to one process.

A task takes some of the 150 tables over all points, which lie once in each node's object store (about 100 bytes a row),
and gives the best neighbours that it found; the driver takes the minimum. Tasks hold no state and know nothing of each
other: one that is run twice changes nothing.
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
