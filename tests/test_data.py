"""Corpora, splits, tokenizers, the cache and the windows, on real files."""

from __future__ import annotations

import doctest
import gzip
import hashlib
import json
import lzma
import math
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tnbench.config import DataConfig
from tnbench.data import (
    SPLITS,
    TokenData,
    cache_folder,
    hub,
    prepare,
    progress,
    shipped,
    splits,
    store,
    tokenizers,
)
from tnbench.data.corpora import find_corpus
from tnbench.data.windows import Split
from tnbench.errors import RequestError

WORDS = ["the", "of", "and", "to", "in", "that", "state", "union", "congress", "law", "people", "日本", "é"]


def prose(seed: int, size: int) -> str:
    """About `size` bytes of words in lines, another text for each seed."""
    rng = np.random.default_rng(seed)
    lines = []
    while sum(map(len, lines)) < size:
        words = [*rng.choice(WORDS, 9), str(rng.integers(10**6))]
        lines.append(" ".join(words) + "\n")
    return "".join(lines)


def write_jsonl(path: Path, texts: list[str], field: str = "text") -> Path:
    path.write_text("".join(json.dumps({"id": i, field: text}) + "\n" for i, text in enumerate(texts)))
    return path


def config(corpus: Path | str, **values: Any) -> DataConfig:
    return DataConfig(corpus=str(corpus), **{"context": 32, **values})


def complaint(**values: Any) -> str:
    with pytest.raises(RequestError) as caught:
        prepare(config(**values))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def texts_of(data: TokenData, split: str) -> list[str]:
    """The documents of a split, from its tokens."""
    part = data.splits[split]
    return [data.tokenizer.decode(part.tokens[a + 1 : b].tolist()) for a, b in pairwise(part.boundaries)]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 documents, of which two are the same."""
    texts = [prose(seed, 700 + 40 * (seed % 9)) for seed in range(59)]
    return write_jsonl(tmp_path_factory.mktemp("many") / "many.jsonl", [*texts, texts[7]])


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TNBENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "data"


# ---------------------------------------------------------------------- corpora


def test_the_shipped_corpus_is_divided_by_document() -> None:
    data = prepare(DataConfig())
    assert sorted(shipped()) == ["state-of-the-union"]
    summary = json.loads(json.dumps(data.describe()))
    assert summary["divided_by"] == "documents"
    assert summary["unused_bytes"] == summary["duplicates_dropped"] == 0
    parts = summary["splits"]
    assert sum(part["documents"] for part in parts.values()) == 233
    assert sum(part["bytes"] for part in parts.values()) == 10_761_158
    for name in splits.HELD_OUT:
        assert 0.045 < parts[name]["bytes"] / 10_761_158 < 0.06
    assert data.vocab_size == 257


def test_the_same_text_in_every_kind_of_file(tmp_path: Path) -> None:
    text = prose(1, 20_000)
    plain = tmp_path / "a.txt"
    plain.write_text(text)
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(text.encode()))
    (tmp_path / "c.TXT.xz").write_bytes(lzma.compress(text.encode()))
    (tmp_path / "enwik").write_bytes(b"\xef\xbb\xbf" + text.encode())
    write_jsonl(tmp_path / "d.jsonl", [text, " ", ""], "body")
    (tmp_path / "e.jsonl.gz").write_bytes(gzip.compress((tmp_path / "d.jsonl").read_bytes()))
    for name in ("a.txt", "b.txt.gz", "c.TXT.xz", "enwik", "d.jsonl", "e.jsonl.gz"):
        corpus = find_corpus(str(tmp_path / name), "body")
        assert list(corpus.read()) == [text.encode()], name


def test_a_folder_is_read_in_sorted_order(tmp_path: Path) -> None:
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "1.md").write_text("one")
    (tmp_path / "a.txt").write_text("two")
    (tmp_path / "image.png").write_bytes(b"\xff\xfe")
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "x.txt").write_text("hidden")
    write_jsonl(tmp_path / "m.jsonl", ["three", "four"])
    corpus = find_corpus(str(tmp_path))
    assert list(corpus.read()) == [b"two", b"three", b"four", b"one"]
    before = corpus.fingerprint()
    assert find_corpus(str(tmp_path)).fingerprint() == before
    (tmp_path / "a.txt").rename(tmp_path / "b.txt")
    assert find_corpus(str(tmp_path)).fingerprint() != before


def test_the_hash_is_of_the_content_and_not_of_the_place(tmp_path: Path, own_cache: Path) -> None:
    text = prose(2, 20_000)
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    one.write_text(text)
    two.write_text(text)
    first = prepare(config(one))
    assert re.fullmatch("[0-9a-f]{12}", first.hash)
    assert first.folder == own_cache / first.hash
    second = prepare(config(two, context=64))
    assert second.hash == first.hash
    assert second.describe()["corpus"] == str(two)
    assert prepare(config(one, tokenizer="bpe-300")).hash != first.hash
    two.write_text(text + "x")
    assert prepare(config(two)).hash != first.hash


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("empty.txt", b"", "is empty: no document"),
        ("blank.jsonl", b'{"text": " "}\n\n', "is empty: no document"),
        (
            "short.txt",
            b"short\n" * 100,
            "has 600 bytes of text in 1 document\\(s\\): too little .* at least 8,192",
        ),
        ("latin.txt", b"caf\xe9 au lait", r"not UTF-8 at byte 3 \(0xe9\)"),
        ("broken.xz.txt.xz", b"no xz at all", r"broken \.xz file"),
        ("cut.txt.xz", lzma.compress(b"x" * 999)[:-20], r"broken \.xz file"),
        ("broken.txt.gz", b"no gzip at all", r"broken \.gz file"),
        ("cut.txt.gz", gzip.compress(b"x" * 999, mtime=0)[:-9], r"broken \.gz file"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', "line 2 is not JSON"),
        ("list.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        (
            "other.jsonl",
            b'{"id": 1, "body": "a"}',
            r"line 1 has no field 'text' \(fields: id, body\); .*text_field",
        ),
        ("null.jsonl", b'{"text": null}', "line 1: field 'text' is no string but NoneType"),
        ("half.jsonl", b'{"text": "\\ud800"}', "line 1: half a surrogate pair"),
        ("table.csv", b"a,b", r"must end in \.txt, \.md or \.jsonl"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = complaint(corpus=path)
    assert name in message
    assert re.search(says, message), message


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    assert complaint(corpus="state-of-union").endswith("did you mean state-of-the-union?")
    assert "known: state-of-the-union; or give" in complaint(corpus="tiny")
    assert complaint(corpus="no/such/place").endswith("no such file or folder")
    assert complaint(corpus="missing.txt").endswith("no such file or folder")
    assert "holds no file whose name ends in" in complaint(corpus=tmp_path)
    assert "write hf:REPOSITORY" in complaint(corpus="hf:")
    assert "no such file or folder" in complaint(corpus=tmp_path / ("x" * 200 + ".txt"))


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="needs a file that opens and cannot be read")
def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bad.txt").symlink_to("/proc/self/mem")
    assert "input/output error" in complaint(corpus=tmp_path / "bad.txt")
    if os.geteuid() == 0:
        return
    (tmp_path / "shut.txt").touch(mode=0)
    assert "permission denied" in complaint(corpus=tmp_path / "shut.txt")


def test_a_corpus_shorter_than_a_context(many: Path) -> None:
    sizes = {name: len(part.tokens) for name, part in prepare(config(many)).splits.items()}
    smallest = min(sizes, key=lambda name: sizes[name])
    message = complaint(corpus=many, context=9999)
    assert f"its {smallest} split has {sizes[smallest]} tokens, shorter than one context of 9999" in message
    longest = int(message.rsplit(" ", 1)[1])
    data = prepare(config(many, context=longest))
    assert data.batch(0, 0, 1, longest).shape == (1, longest + 1)
    with pytest.raises(RequestError, match="at most"):
        data.evaluation(smallest, longest + 1)


# ---------------------------------------------------------------------- splits


def test_whole_documents_in_one_split_each(many: Path) -> None:
    data = prepare(config(many))
    documents = [json.loads(line)["text"] for line in many.read_text().splitlines()]
    found = [text for split in SPLITS for text in texts_of(data, split)]
    assert Counter(found) == Counter(set(documents))
    assert data.describe()["duplicates_dropped"] == 1
    assert data.describe()["divided_by"] == "documents"
    assert all(part.documents for part in data.splits.values())


def test_more_documents_leave_most_where_they_were() -> None:
    texts = [prose(seed, 400).encode() for seed in range(200)]
    before = splits.divide("x", texts[:199]).splits
    after = splits.divide("x", texts[::-1]).splits
    for name in SPLITS:
        assert len(set(before[name]) - set(after[name])) <= 2, name


def division_of(documents: list[bytes]) -> splits.Division:
    division = splits.divide("x", documents)
    assert division.by == "blocks"
    return division


def places(text: bytes, division: splits.Division) -> list[tuple[int, int, str]]:
    """Where the blocks lie in a text in which every line is unique."""
    spans = []
    for name, pieces in division.splits.items():
        for piece in pieces:
            start = text.index(piece)
            spans.append((start, start + len(piece), name))
    return sorted(spans)


@pytest.mark.parametrize("size", [10_000, 60_000, 1_500_000])
def test_one_document_is_cut_into_blocks_with_gaps(size: int) -> None:
    numbered = "".join(f"{i} {i * i} straße\n" for i in range(size // 20)).encode()
    division = division_of([numbered])
    spans = places(numbered, division)
    assert len(spans) == 4 * max(1, len(numbered) // splits.SEGMENT)
    for (_, end, before), (start, _, after) in pairwise(spans):
        assert before != after
        assert start - end >= splits.GAP
    for start, end, _ in spans:  # whole lines, except at the ends of the text
        assert start == 0 or numbered[start - 1 : start] == b"\n"
        assert end == len(numbered) or numbered[end - 1 : end] == b"\n"
    for name in splits.HELD_OUT:
        held_out = sum(map(len, division.splits[name]))
        assert 0.6 < held_out * splits.SHARE / len(numbered) <= 1
    assert division.unused_bytes == len(numbered) - sum(end - start for start, end, _ in spans)


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(1, 40_000), min_size=1, max_size=12),
    st.sampled_from(["日本語", "a\n", "wörter und ", "no-break"]),
)
def test_any_documents_are_divided_without_overlap(sizes: list[int], filler: str) -> None:
    documents = [(f"{i}:" + filler * size)[:size].encode() for i, size in enumerate(sizes)]
    try:
        division = splits.divide("x", documents)
    except RequestError:
        assert sum(map(len, documents)) < splits.SMALLEST
        return
    kept = [piece for part in division.splits.values() for piece in part]
    assert sum(map(len, kept)) + division.unused_bytes == sum(map(len, set(documents)))
    for piece in kept:
        piece.decode()  # never cut inside a character
    for name in splits.HELD_OUT:
        assert 0 < sum(map(len, division.splits[name])) * splits.SHARE <= 2 * sum(map(len, documents))


def test_the_report_text_is_the_same_for_every_tokenizer(many: Path) -> None:
    one, other = prepare(config(many)), prepare(config(many, tokenizer="bpe-400"))
    for split in SPLITS:
        assert texts_of(one, split) == texts_of(other, split)
        assert one.splits[split].text_bytes == other.splits[split].text_bytes


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


# ---------------------------------------------------------------------- the cache


def snapshot(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_a_damaged_cache_is_named_and_built_again(
    many: Path, own_cache: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    asked = config(many, tokenizer="bpe-300")
    folder = prepare(asked).folder
    whole = snapshot(folder)
    assert len(whole) == 3 * len(SPLITS) + 2
    assert capfd.readouterr().err == ""
    for victim in whole:
        path = folder / victim
        path.write_bytes(path.read_bytes()[:-1] if victim != "meta.json" else b'{"files":')
        prepare(asked)
        error = capfd.readouterr().err
        assert victim in error
        assert error.count("\n") == 1
        assert snapshot(folder) == whole
    (folder / "train.tokens").unlink()
    prepare(asked, quiet=True)
    assert capfd.readouterr().err == ""
    assert snapshot(folder) == whole
    assert list(own_cache.iterdir()) == [folder]


def test_a_good_cache_is_not_touched(many: Path, own_cache: Path) -> None:
    folder = prepare(config(many)).folder
    times = {path: path.stat().st_mtime_ns for path in [folder, *folder.iterdir()]}
    leftover = own_cache / f".{folder.name}.dead"
    leftover.mkdir()
    prepare(config(many))
    assert {path: path.stat().st_mtime_ns for path in times} == times
    shutil.rmtree(folder)
    prepare(config(many))
    assert leftover.exists()  # it may belong to a process that is still writing
    os.utime(leftover, (0, 0))
    shutil.rmtree(folder)
    prepare(config(many))
    assert not leftover.exists()


def test_processes_that_build_at_once_all_succeed(tmp_path: Path, own_cache: Path) -> None:
    path = write_jsonl(tmp_path / "c.jsonl", [prose(seed, 2000) for seed in range(40)])
    ready = tmp_path / "go"
    code = (
        "import sys, time, pathlib; from tnbench.config import DataConfig; from tnbench.data import prepare\n"
        "print('ready', flush=True)\n"
        "while not pathlib.Path(sys.argv[2]).exists(): time.sleep(0.001)\n"
        "data = prepare(DataConfig(corpus=sys.argv[1], tokenizer='bpe-600', context=32))\n"
        "print(data.hash, data.batch(0, 0, 4, 32).sum().item())"
    )
    command = [sys.executable, "-c", code, str(path), str(ready)]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in running:
        assert process.stdout
        assert process.stdout.readline() == "ready\n"
    ready.touch()
    answers = [process.communicate(timeout=100)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert answers[0] == answers[1]
    assert [entry.name for entry in own_cache.iterdir()] == [answers[0].split()[0]]


def test_the_second_to_finish_leaves_the_first_one_s_folder(many: Path, own_cache: Path) -> None:
    folder = prepare(config(many)).folder
    before = {path: path.stat().st_ino for path in [folder, *folder.iterdir()]}
    corpus = find_corpus(str(many))
    store._build(corpus, corpus.fingerprint(), "bytes", tokenizers.Bytes(), folder, True)
    assert {path: path.stat().st_ino for path in [folder, *folder.iterdir()]} == before
    assert list(own_cache.iterdir()) == [folder]


def test_a_bar_appears_on_a_terminal_and_only_after_a_while(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    for patience, quiet, shown in ((0.0, False, True), (99.0, False, False), (0.0, True, False)):
        monkeypatch.setattr(progress, "PATIENCE", patience)
        with progress.Meter("tokenizing x", 10, quiet=quiet) as meter:
            meter.advance(5)
        output = capfd.readouterr()
        assert output.out == ""
        assert ("tokenizing x" in output.err) is shown


def test_a_cache_that_cannot_be_written(many: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("TNBENCH_CACHE", str(tmp_path / "file"))
    message = complaint(corpus=many)
    assert message.startswith(f"cannot write the token cache {tmp_path / 'file'}: ")
    assert message.endswith("TNBENCH_CACHE")


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNBENCH_CACHE", "/a")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/a")
    monkeypatch.setenv("TNBENCH_CACHE", "")
    assert cache_folder() == Path("/b/tnbench")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == Path.home() / ".cache" / "tnbench"


# ---------------------------------------------------------------------- windows


def stream(tokens: int) -> TokenData:
    """Tokens 0, 1, 2 … closed by 0, so that every target of the ring is known by its value."""
    values = np.arange(tokens, dtype=np.uint32)
    values[-1] = 0
    split = Split(values, np.array([0, tokens - 1]), np.array([tokens - 2]))
    return TokenData("x", "x", tokenizers.Bytes(), dict.fromkeys(SPLITS, split), Path(), {})


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 60), st.integers(1, 600), st.integers(1, 23), st.integers(0, 3))
def test_an_epoch_takes_every_window_once(context: int, extra: int, sequences: int, seed: int) -> None:
    data = stream(context + extra)
    ring = context + extra - 1
    windows = ring // context
    steps = math.ceil(3 * windows / sequences)
    rows = torch.cat([data.batch(seed, step, sequences, context) for step in range(steps)])
    assert ((rows[:, 1:] - rows[:, :-1]) % ring == 1).all()  # each window is a stretch of the ring
    for epoch in range(3):
        targets = rows[epoch * windows : (epoch + 1) * windows, 1:].flatten()
        assert len(targets.unique()) == windows * context  # no target twice
    assert data.epochs(steps, sequences, context) == steps * sequences / windows


def test_batches_depend_on_nothing_but_their_arguments() -> None:
    data = stream(10_000)
    forward = [data.batch(5, step, 7, 32) for step in range(120)]
    for step in reversed(range(120)):
        assert torch.equal(stream(10_000).batch(5, step, 7, 32), forward[step])
    assert forward[0].dtype == torch.int64
    windows = 9999 // 32
    epochs = torch.cat(forward)[: 2 * windows].view(2, windows, 33)
    assert not torch.equal(epochs[0], epochs[1])
    assert epochs[0, 0, 0] % 32 != epochs[1, 0, 0] % 32  # the offsets differ as well
    assert not torch.equal(data.batch(6, 0, 7, 32), forward[0])
    # A run that is resumed or repeated elsewhere must see this very order.
    assert forward[0][:, 0].tolist() == [7489, 3634, 7649, 658, 6305, 5089, 274]


@pytest.mark.parametrize("tokenizer", ["bytes", "bpe-400"])
@pytest.mark.parametrize("max_bytes", [None, 1, 1500, 10**9])
def test_an_evaluation_covers_every_target_once(many: Path, tokenizer: str, max_bytes: int | None) -> None:
    data = prepare(config(many, tokenizer=tokenizer))
    for context, sequences in ((32, 5), (7, 1000), (1, 3)):
        chosen = data.evaluation("report", context, max_bytes)
        inputs, targets, seen = [], [], []
        for x, y in chosen.batches(sequences):
            assert x.shape == y.shape
            seen.append(tuple(x.shape))
            inputs.append(x.flatten())
            targets.append(y.flatten())
        full = chosen.tokens // context
        assert all(shape[1] == context and shape[0] <= sequences for shape in seen[:-1])
        assert sum(shape[0] for shape in seen if shape[1] == context) == full
        joined = torch.cat([inputs[0][:1], *targets]).numpy()
        assert (joined == chosen.stream).all()
        assert (torch.cat(inputs).numpy() == chosen.stream[:-1]).all()
        assert len(joined) == chosen.tokens + 1
        end = data.tokenizer.end_of_text
        assert joined[0] == joined[-1] == end
        assert (joined == end).sum() == chosen.documents + 1
        text = data.tokenizer.decode(joined.tolist())
        assert len(text.encode()) == chosen.text_bytes
        limit = max_bytes or 10**9
        assert chosen.text_bytes >= min(limit, data.splits["report"].text_bytes)
        last = data.splits["report"].document_bytes[chosen.documents - 1]
        assert chosen.text_bytes - last < limit


def test_bits_per_byte_of_a_uniform_model(many: Path) -> None:
    """A model that knows nothing spends log2(257) bits on every byte and on each document's end."""
    chosen = prepare(config(many)).evaluation("report", 32)
    nats = 0.0
    for _, targets in chosen.batches(8):
        logits = torch.zeros(*targets.shape, 257, dtype=torch.float64)
        nats += torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        ).item()
    ends = chosen.documents / chosen.text_bytes
    assert nats / math.log(2) / chosen.text_bytes == pytest.approx(math.log2(257) * (1 + ends), rel=1e-12)


def test_a_misspelt_split_is_named(many: Path) -> None:
    with pytest.raises(RequestError, match="did you mean report"):
        prepare(config(many)).evaluation("reprot", 32)


def test_large_vocabularies_need_wider_tokens(many: Path, own_cache: Path) -> None:
    class Wide(tokenizers.Bytes):
        vocab_size = 70_000
        end_of_text = 69_999

    corpus = find_corpus(str(many))
    store._build(corpus, corpus.fingerprint(), "wide", Wide(), own_cache / "wide", True)
    tokens = store._open(config(many), own_cache / "wide", Wide()).splits["tune"].tokens
    assert tokens.dtype == np.uint32
    assert tokens[0] == tokens[-1] == 69_999
