"""Tokenizers, and what comes from the Hugging Face hub."""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import complaint, config, prose, texts_of, write_jsonl

from tnbench.data import hub, prepare, store, tokenizers
from tnbench.data.corpora import find_corpus

# ---------------------------------------------------------------------- tokenizers


@pytest.fixture(scope="module")
def trained() -> tokenizers.Subwords:
    return tokenizers.train_bpe("bpe-400", 400, [prose(3, 20_000)], "x")


@settings(max_examples=60, deadline=None)
@given(st.text())
def test_decoding_undoes_encoding(trained: tokenizers.Subwords, text: str) -> None:
    for tokenizer in (tokenizers.Bytes(), trained):
        ids = tokenizer.encode(text)
        assert tokenizer.decode([tokenizer.end_of_text, *ids.tolist()]) == text
        assert tokenizer.encode_batch([text, "a"])[0].tolist() == ids.tolist()
        assert not len(ids) or ids.max() < tokenizer.vocab_size


def test_text_that_spells_end_of_text_stays_text(trained: tokenizers.Subwords) -> None:
    text = f"a {tokenizers.END_OF_TEXT} b"
    assert trained.end_of_text == trained.vocab_size - 1 == 399
    assert trained.end_of_text not in trained.encode(text)
    assert trained.decode(trained.encode(text)) == text


def test_training_a_tokenizer_is_deterministic_and_sees_the_training_split_only(many: Path) -> None:
    data = prepare(config(many, tokenizer="bpe-400"))
    again = tokenizers.train_bpe("bpe-400", 400, texts_of(data, "train"), "x")
    assert again.hash == data.tokenizer.hash
    more = tokenizers.train_bpe("bpe-400", 400, texts_of(data, "train") + texts_of(data, "tune"), "x")
    assert more.hash != data.tokenizer.hash


def test_long_documents_have_the_tokens_of_the_whole(
    trained: tokenizers.Subwords, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PIECE", 6000)
    text = prose(4, 50_000)
    pieces = list(store._pieces(text))
    assert len(pieces) > 5
    assert "".join(pieces) == text
    assert np.concatenate(trained.encode_batch(pieces)).tolist() == trained.encode(text).tolist()
    unbroken = "日" * 20_000
    assert [len(piece) for piece in store._pieces(unbroken)] == [6000, 6000, 6000, 2000]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("byte", "did you mean bytes?"),
        ("bpe8192", "did you mean bpe-8192?"),
        ("BPE-8k", "did you mean bpe-8192?"),
        ("bpe-0512", "did you mean bpe-512?"),
        ("bpe", "known: bytes, bpe-N, a Hugging Face tokenizer folder, hf:NAME"),
        ("bpe-257", "N of bpe-N must be from 258 to 262144"),
        ("bpe-999999999", "N of bpe-N must be from 258 to 262144"),
        ("models/gpt", "no such folder"),
    ],
)
def test_a_misspelt_tokenizer_is_named(name: str, says: str) -> None:
    assert says in complaint(corpus="state-of-the-union", tokenizer=name)


def test_a_vocabulary_that_the_text_cannot_fill(many: Path, own_cache: Path) -> None:
    message = complaint(corpus=many, tokenizer="bpe-50000")
    fit = re.search(r"yields only (\d+) ids; use bpe-(\d+) or less", message)
    assert fit
    assert fit[1] == fit[2]
    assert prepare(config(many, tokenizer=f"bpe-{fit[1]}")).vocab_size == int(fit[1])
    assert len(list(own_cache.iterdir())) == 1  # what failed left nothing behind


@pytest.fixture(scope="module")
def saved(trained: tokenizers.Subwords, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tokenizer")
    trained.save(folder / "raw.json")
    fast = PreTrainedTokenizerFast(tokenizer_file=str(folder / "raw.json"), eos_token=tokenizers.END_OF_TEXT)
    fast.save_pretrained(folder / "whole")
    trained.save(folder / "tokenizer.json")
    return folder


def test_a_hugging_face_tokenizer_folder(many: Path, saved: Path, trained: tokenizers.Subwords) -> None:
    data = prepare(config(many, tokenizer=str(saved / "whole")))
    assert (data.vocab_size, data.tokenizer.end_of_text) == (400, 399)
    text = f"congress and {tokenizers.END_OF_TEXT} straße"
    assert data.tokenizer.encode(text).tolist() == trained.encode(text).tolist()
    assert data.tokenizer.decode(data.tokenizer.encode(text).tolist()) == text
    assert Counter(texts_of(data, "tune")) == Counter(texts_of(prepare(config(many)), "tune"))


def test_a_tokenizer_folder_that_lacks_something(many: Path, saved: Path, tmp_path: Path) -> None:
    assert "names no end-of-text token" in complaint(corpus=many, tokenizer=str(saved))
    assert "name the folder" in complaint(corpus=many, tokenizer=str(saved / "raw.json"))
    assert str(tmp_path) in complaint(corpus=many, tokenizer=str(tmp_path))


# ---------------------------------------------------------------------- the hub

OUT_OF_REACH = "the Hugging Face hub cannot be reached, and the local cache does not hold it"
HUB_PROBE = """
from tnbench.config import DataConfig
from tnbench.data import prepare
from tnbench.errors import RequestError
for values in ({"corpus": "hf:Salesforce/wikitext:wikitext-103-raw-v1"}, {"tokenizer": "hf:gpt2"}):
    try:
        prepare(DataConfig(**values))
    except RequestError as error:
        print(error)
"""


def test_the_hub_switched_off(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", HUB_PROBE]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.splitlines() == [
        f"corpus hf:Salesforce/wikitext:wikitext-103-raw-v1: {OUT_OF_REACH}",
        f"tokenizer hf:gpt2: {OUT_OF_REACH}",
    ]


def test_the_hub_out_of_reach_is_noticed_at_once(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # where nothing listens
    name = "hf:tnbench/no-such-thing"
    assert complaint(corpus=name) == f"corpus {name}: {OUT_OF_REACH}"
    assert complaint(tokenizer=name, corpus="state-of-the-union") == f"tokenizer {name}: {OUT_OF_REACH}"
    assert "Retrying" not in capfd.readouterr().err
    assert constants.HF_HUB_OFFLINE is False


def test_a_data_set_of_the_hub_s_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import config as datasets_config

    monkeypatch.setattr(datasets_config, "HF_DATASETS_CACHE", tmp_path / "cache")
    (tmp_path / "set").mkdir()
    texts = [prose(seed, 500) for seed in range(40)]
    write_jsonl(tmp_path / "set" / "train.jsonl", texts, "body")
    name = f"hf:{tmp_path / 'set'}"
    corpus = find_corpus(name, "body")
    assert [document.decode() for document in corpus.read()] == texts
    assert find_corpus(name, "body").fingerprint() == corpus.fingerprint()
    assert prepare(config(name, text_field="body")).splits["train"].documents > 30
    assert re.search(r"no field 'text' \(fields: id, body\)", complaint(corpus=name))


def test_rows_that_are_lines_become_documents() -> None:
    rows = [
        "",
        " = First = \n",
        "",
        " A line . \n",
        " = = Section = = \n",
        " More . \n",
        " = Second = \n",
        " B . \n",
    ]
    assert list(hub.join_lines(rows)) == ["\n" + "".join([*rows[1:2], "\n", *rows[3:6]]), "".join(rows[6:])]
    plain = [f"document {i}" for i in range(3000)]
    assert list(hub.join_lines([*plain, "", "last"])) == [*plain, "last"]
    assert list(hub.join_lines([])) == []


@pytest.mark.parametrize("module", [hub, tokenizers])
def test_examples_in_docstrings(module: Any) -> None:
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed
