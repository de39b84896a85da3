"""What all tests share: a token cache of their own, in which the shipped corpus is built once."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _token_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TNBENCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
