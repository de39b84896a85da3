"""Compiling ahead of a campaign: throw-away processes that fill the compilers' caches on disk."""

from __future__ import annotations

import contextlib
import os
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tnbench.profiling.pool import Pool, Worker


def compile_all(pool: Pool, jobs: deque[tuple[str, dict[str, Any]]], deadline: float | None) -> None:
    """Call each (implementation, case) once, in as many processes of their own as there are cores.

    Args:
        jobs: best sorted by implementation, for which a process is started anew; empty afterwards.
        deadline: on the monotonic clock, after which no more is begun.
    """
    spares: list[Worker] = []

    def work() -> None:
        worker = None
        while jobs and (deadline is None or time.monotonic() < deadline):
            with contextlib.suppress(IndexError):  # another thread took the last one
                name, case = jobs.popleft()
                if worker is None or worker.name != name:
                    if worker is not None:
                        worker.close()
                    worker = pool.spare(name)
                    spares.append(worker)
                worker.ask({"do": "compile", "case": case})
        if worker is not None:
            worker.close()

    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as threads:
        lanes = [threads.submit(work) for _ in range(min(cores, len(jobs)))]
        try:
            for lane in lanes:
                lane.result()
        except BaseException:  # Ctrl-C among others: nobody is waited for
            jobs.clear()
            for worker in spares:
                worker.close()
            raise
