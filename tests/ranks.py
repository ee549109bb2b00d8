"""Functions run by several processes that are one gloo group, as a run's workers are."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_PRELOADED = ["torch", "torch.distributed", "open_clip", "pipeline.train.loop"]


def ranks(size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """function(*args) in each of `size` processes; their answers in the order of ranks.

    The processes are forked by a server that has imported torch and nothing else has happened in.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        pipes, processes = [], []
        for rank in range(size):
            here, there = context.Pipe(duplex=False)
            process = context.Process(target=_run, args=(rank, size, folder, there, function, args), daemon=False)
            process.start()
            there.close()
            pipes.append(here)
            processes.append(process)
        answers = []
        for rank, pipe in enumerate(pipes):
            try:
                answers.append(pipe.recv())
            except EOFError:
                answers.append(RuntimeError(f"rank {rank} died"))
        for process in processes:
            process.join()
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def _run(rank: int, size: int, folder: str, pipe: Any, function: Callable[..., Any], args: Any) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder) / 'meet'}", rank=rank, world_size=size)
        answer = function(*args)
    except Exception as error:  # noqa: BLE001 - told to whoever asked
        answer = RuntimeError(f"rank {rank}: {error}\n{traceback.format_exc()}")
    pipe.send(answer)
    pipe.close()
    if not isinstance(answer, Exception):
        dist.destroy_process_group()
