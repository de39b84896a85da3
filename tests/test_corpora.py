"""Corpora of every kind of file, and their division into splits."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import complaint, config, prose, texts_of, write_jsonl

from tnbench.config import DataConfig
from tnbench.data import SPLITS, prepare, shipped, splits
from tnbench.data.corpora import find_corpus
from tnbench.errors import RequestError

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
