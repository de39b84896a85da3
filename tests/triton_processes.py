"""Kernels without a GPU, for their tests: Triton reads TRITON_INTERPRET when kernels are imported, so that
each kind of test has a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

TESTS = Path(__file__).parent


def python(*arguments: str, interpret: bool, seconds: float = 600) -> subprocess.CompletedProcess[str]:
    """Python in the folder of the tests, with or without the interpreter."""
    kept = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    paths = [str(TESTS.parent), str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
    asked = {"TRITON_INTERPRET": "1"} if interpret else {}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=TESTS,
        env={**kept, "PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1", **asked},
        capture_output=True,
        text=True,
        timeout=seconds,
    )


def interpreted(marks: str, *files: str, seconds: float = 600) -> None:
    """The tests of these files that bear the marks pass in the interpreter."""
    pytest.importorskip("triton")
    options = ("-q", "-x", "-n", "0", "-m", marks, "-p", "no:cacheprovider", "-o", "timeout=0")
    done = python("-m", "pytest", *options, *files, interpret=True, seconds=seconds)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def poison(patch: pytest.MonkeyPatch) -> None:
    """Outputs begin as NaN: what a kernel leaves unwritten shows."""
    empty, like = torch.empty, torch.empty_like
    patch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(float("nan")))
    patch.setattr(torch, "empty_like", lambda *a, **k: like(*a, **k).fill_(float("nan")))
