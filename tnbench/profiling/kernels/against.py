"""The kernels of another revision, for `--against`: its folder `kernels/`, unpacked from git."""

from __future__ import annotations

import io
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tnbench.errors import RequestError
from tnbench.records import PACKAGE

LETTERS = 10
"""Of the commit, in the name of an implementation of that revision: `triton@0123456789`."""


def commit_of(ref: str, root: Path = PACKAGE.parent) -> str:
    """The commit that a branch, tag or hash stands for.

    Raises:
        RequestError: this is no git checkout of tnbench, or it has no such revision with kernels in it.
    """
    top = _git(root, "rev-parse", "--show-toplevel")
    if top is None or Path(top.decode().strip()).resolve() != root.resolve():
        raise RequestError(f"--against {ref}: {root} is not a git checkout of tnbench")
    found = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{ref}^{{commit}}")
    if found is None:
        raise RequestError(f"--against {ref}: git knows no such revision; git log --oneline lists some")
    commit = found.decode().strip()
    if _git(root, "cat-file", "-e", f"{commit}:kernels") is None:
        raise RequestError(f"--against {ref}: this revision has no folder kernels/")
    return commit


@contextmanager
def kernels_at(commit: str, root: Path = PACKAGE.parent) -> Iterator[Path]:
    """A temporary folder that holds `kernels/` of a commit; nothing is left of it, in git or elsewhere."""
    with tempfile.TemporaryDirectory(prefix="tnbench-kernels-") as folder:
        archive = _git(root, "archive", "--format=tar", commit, "kernels")
        if archive is None:
            raise RequestError(f"git archive {commit[:LETTERS]} kernels failed in {root}")
        with tarfile.open(fileobj=io.BytesIO(archive)) as files:
            files.extractall(folder, filter="data")
        yield Path(folder)


def _git(root: Path, *arguments: str) -> bytes | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout
