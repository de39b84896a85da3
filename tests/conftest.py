"""What tests share: a token cache in which the shipped corpus is built once, corpora, a tiny finished run.

The helpers and torch are imported where they are used: a process that only hands tests out loads neither.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tnbench.data import TokenData
    from tnbench.records import RunFolder

pytest.register_assert_rewrite("texts", "tiny_runs", "small_suite")


@pytest.fixture(scope="session", autouse=True)
def _imports_are_kept() -> Iterator[None]:
    """Every run collects garbage: what the collection of tests has imported is not looked through again."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder of a token cache that no other test uses."""
    monkeypatch.setenv("TNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, of which two are the same."""
    from texts import prose, write_jsonl

    texts = [prose(seed, 700 + 40 * (seed % 9)) for seed in range(59)]
    return write_jsonl(tmp_path_factory.mktemp("many") / "many.jsonl", [*texts, texts[7]])


@pytest.fixture(scope="module")
def settled_process() -> None:
    """One thread, and what was imported since the tests began is kept from the garbage collector too."""
    import torch
    import torch._dynamo

    torch.set_num_threads(1)
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text of random words, about 80 KB."""
    folder = tmp_path_factory.mktemp("corpus")
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghij", k=draw.randint(1, 9))) for _ in range(300)]
    lines = [" ".join(draw.choices(words, k=12)) for _ in range(1200)]
    path = folder / "words.txt"
    path.write_text("\n".join(lines))
    return path


@pytest.fixture(scope="module")
def data(corpus: Path) -> TokenData:
    """The tokens of `corpus`, as a tiny run reads them."""
    from tiny_runs import tiny

    from tnbench.data import prepare

    return prepare(tiny(corpus).data, quiet=True)


@pytest.fixture(scope="module")
def whole(corpus: Path, data: TokenData, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The uninterrupted run that resumed ones have to equal."""
    from tiny_runs import tiny

    from tnbench.records import RunFolder
    from tnbench.training.loop import run

    folder = RunFolder(tmp_path_factory.mktemp("whole") / "run")
    assert run(tiny(corpus), folder, data, attributes={"variant": "base"}) == "finished"
    return folder
