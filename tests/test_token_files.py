"""The token cache, the windows of training and the texts of evaluation."""

from __future__ import annotations

import hashlib
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from texts import complaint, config, prose, write_jsonl

from tnbench.data import SPLITS, TokenData, cache_folder, prepare, progress, store, tokenizers
from tnbench.data.corpora import find_corpus
from tnbench.data.windows import Split
from tnbench.errors import RequestError

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


# ---------------------------------------------------------------------- a cache's folder as a corpus


def test_a_prepared_folder_stands_for_its_corpus(many: Path, tmp_path: Path, own_cache: Path) -> None:
    """Copied to a machine without the text: the same hash, tokens and tokenizer."""
    there = prepare(config(many, tokenizer="bpe-300"), quiet=True)
    elsewhere = tmp_path / "copied" / there.hash
    shutil.copytree(there.folder, elsewhere)
    here = prepare(config(elsewhere, tokenizer="bpe-300"), quiet=True)
    assert (here.hash, here.tokenizer.hash) == (there.hash, there.tokenizer.hash)
    for name in SPLITS:
        assert np.array_equal(here.splits[name].tokens, there.splits[name].tokens)


def test_a_prepared_folder_that_does_not_fit(many: Path, tmp_path: Path, own_cache: Path) -> None:
    there = prepare(config(many, tokenizer="bpe-300"), quiet=True)
    copy = tmp_path / there.hash
    shutil.copytree(there.folder, copy)
    assert "set data.tokenizer=bpe-300" in complaint(corpus=copy, tokenizer="bytes")
    renamed = shutil.copytree(copy, tmp_path / "tokens")
    assert "must keep its name" in complaint(corpus=renamed, tokenizer="bpe-300")
    with open(copy / "train.tokens", "r+b") as file:
        file.truncate(100)
    assert "100 bytes instead of" in complaint(corpus=copy, tokenizer="bpe-300")
