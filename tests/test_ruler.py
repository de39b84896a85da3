"""RULER's tasks: the same texts for every model, made without a network."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval")

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.evaluation import ruler, tasks
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ruler, "NEEDED", ("json", "no_such_package"))
    with pytest.raises(RequestError, match="RULER's tasks need no_such_package: pip install"):
        tasks.wanted("niah_single_1", None, include=None, data=None)


def test_their_tokenizer_counts_bytes(own_cache: Path):
    from transformers import AutoTokenizer

    pytest.importorskip("wonderwords")
    pytest.importorskip("nltk")
    made = ruler.metadata()
    assert Path(made["tokenizer"]).is_relative_to(own_cache.parent)
    tokenizer = AutoTokenizer.from_pretrained(made["tokenizer"])
    text = "The quick brown fox, señor."
    assert len(tokenizer(text).input_ids) == len(text.encode())
    assert ruler.metadata() == made


@pytest.mark.slow
def test_needles_are_asked(whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture):
    pytest.importorskip("wonderwords")
    pytest.importorskip("nltk")
    arguments = ["eval", str(whole.path), "--tasks", "niah_single_1", "--limit", "2", "--device", "cpu"]
    with pytest.raises(SystemExit) as left:
        cli.main([*arguments, "--max-length", "6000", "--results", str(tmp_path)])
    assert left.value.code == 0
    (record,) = map(json.loads, (tmp_path / "evals" / "records.jsonl").read_text().splitlines())
    assert list(record["metrics"]) == ["4096"]
    assert record["cut"] == 0
    assert not capsys.readouterr().err
