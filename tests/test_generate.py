"""`tnbench generate`: a trained run, from the command line to the text."""

from __future__ import annotations

import doctest
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_decoding import preset_model
from torch import Tensor

from tnbench import cli
from tnbench.evaluation import command
from tnbench.evaluation.loading import load_run
from tnbench.evaluation.sampling import Sampler
from tnbench.records import RunFolder

pytestmark = pytest.mark.usefixtures("settled_process")


@pytest.fixture
def results(whole: RunFolder, tmp_path: Path) -> Path:
    """A results folder in which a tiny run lies under its id."""
    shutil.copytree(whole.path, tmp_path / "results" / "tiny" / "runs" / whole.id)
    return tmp_path / "results"


@pytest.fixture
def run(results: Path, whole: RunFolder) -> list[str]:
    return ["generate", whole.id, "--results", str(results), "--device", "cpu"]


def tnbench(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def test_a_trained_run_generates(run: list[str], capsys: pytest.CaptureFixture[str]):
    """The text alone on stdout, one line about it on stderr; the same seed gives the same text."""
    said = []
    for seed in "0", "0", "1":
        assert tnbench(*run, "--prompt", "abc", "--tokens", "40", "--seed", seed) == 0
        out, err = capsys.readouterr()
        assert err.strip().splitlines()[-1].startswith("40 tokens in ")
        assert "tokens/s" in err
        assert "the same for any length" in err
        said.append(out)
    assert said[0] == said[1] != said[2]
    assert 20 < len(said[0]) <= 41
    assert said[0].endswith("\n")


def test_the_command_says_what_the_model_says(run: list[str], results: Path, capsys: Any):
    """Greedy: the text of the most probable tokens by the parallel form."""
    model, tokenizer, _ = load_run("run", results)
    ids = tokenizer.encode("abcd ").tolist()
    with torch.no_grad():
        for _ in range(12):
            ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    assert tnbench(*run, "--prompt", "abcd ", "--tokens", "12", "--temperature", "0") == 0
    assert capsys.readouterr().out == tokenizer.decode(ids[5:]) + "\n"


def test_samples_stand_one_after_the_other(run: list[str], capsys: pytest.CaptureFixture[str]):
    """A sample is what its seed gives alone."""
    assert tnbench(*run, "--prompt", "ab", "--tokens", "20", "--samples", "2", "--seed", "3") == 0
    together = capsys.readouterr().out
    alone = []
    for seed in "3", "4":
        assert tnbench(*run, "--prompt", "ab", "--tokens", "20", "--seed", seed) == 0
        alone.append(capsys.readouterr().out)
    assert together == f"--- sample 1 of 2\n{alone[0]}--- sample 2 of 2\n{alone[1]}"


def test_a_prompt_from_stdin_and_none(run: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch):
    """An empty prompt begins a document."""
    options = ["--tokens", "10", "--temperature", "0"]
    outs = []
    for prompt, stdin in (("-", "wörd "), ("wörd ", ""), ("", ""), ("-", "")):
        path = Path(run[3]) / "stdin"
        path.write_text(stdin)
        with open(path) as file, monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", file)
            assert tnbench(*run, *options, "--prompt", prompt) == 0
        outs.append(capsys.readouterr().out)
    assert outs[0] == outs[1]
    assert outs[2] == outs[3]


def test_a_document_that_ends(run: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch):
    script = iter([*b"hey", 256, *b"never"])
    monkeypatch.setattr(Sampler, "__call__", lambda self, logits: torch.tensor([next(script)]))
    assert tnbench(*run, "--prompt", "a") == 0
    out, err = capsys.readouterr()
    assert out == "hey\n"
    assert "4 tokens in " in err


def test_ctrl_c_stops_cleanly(run: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch):
    script = iter(b"word")

    def pressed(self: Sampler, logits: Tensor) -> Tensor:
        byte = next(script, None)
        if byte is None:
            signal.raise_signal(signal.SIGINT)
        return torch.tensor([byte])

    monkeypatch.setattr(Sampler, "__call__", pressed)
    assert tnbench(*run, "--prompt", "a") == 130
    out, err = capsys.readouterr()
    assert out == "word\n"
    assert "interrupted after 4 tokens" in err
    assert "Traceback" not in err


def test_a_reader_that_has_gone(run: list[str], monkeypatch: pytest.MonkeyPatch, capsys: Any):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as pipe, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert tnbench(*run, "--prompt", "a") == 0
    assert "Error" not in capsys.readouterr().err


class Terminal:
    """A stdout that says it is one."""

    encoding = "ascii"

    def __init__(self) -> None:
        self.text = ""

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> int:
        text.encode("ascii")
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass


def test_a_terminal_gets_no_control_characters(run: list[str], monkeypatch: pytest.MonkeyPatch):
    """And nothing that its encoding lacks."""
    script = iter([*"a\x1b[31mé\tb\n".encode(), 256])
    monkeypatch.setattr(Sampler, "__call__", lambda self, logits: torch.tensor([next(script)]))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert tnbench(*run, "--prompt", "a") == 0
    assert terminal.text == "a?[31m?\tb\n\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--temperature", "-1"], "--temperature = -1: give 0"),
        (["--top-p", "2"], "--top-p = 2: give a share"),
        (["--top-k", "0"], "--top-k = 0: give at least 1"),
        (["--tokens", "0"], "'--tokens'"),
        (["--samples", "1" + "0" * 12], "of memory, and"),
        (["--seed", str(2**63)], f"--seed {2**63}: the largest is {2**63 - 1}, 2^63 - 1"),
        (["--prompt", "\udc80"], "--prompt: the text is not UTF-8"),
        pytest.param(
            ["--device", "cuda"],
            "torch sees no GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_wrong_requests(run: list[str], arguments: list[str], says: str, capsys: Any):
    assert tnbench(*run, *arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert says in err


def test_a_cache_that_does_not_fit(run: list[str], capsys: Any, monkeypatch: Any):
    """A state of constant size has room for any number of tokens."""
    loaded = load_run("run", Path(run[3]))
    monkeypatch.setattr(command, "available", lambda device: 10**6)
    monkeypatch.setattr(Sampler, "__call__", lambda self, logits: torch.tensor([256]))
    assert tnbench(*run, "--tokens", "1" + "0" * 20) == 0
    capsys.readouterr()
    grows = loaded._replace(model=preset_model("transformer", context=10))
    monkeypatch.setattr(command, "load_run", lambda *arguments: grows)
    assert tnbench(*run, "--tokens", "100", "--prompt", "\x01") == 0
    capsys.readouterr()
    assert tnbench(*run, "--tokens", "100000") == 2
    said = capsys.readouterr().err
    assert said.startswith("tnbench: --samples 1 of 100000 tokens, prompt included, need ")
    assert said.endswith(" of memory, and 977 KiB are free; ask for less\n")


def test_closed_and_unreadable_streams(run: list[str], capsys: Any, monkeypatch: pytest.MonkeyPatch):
    class Broken:
        def read(self) -> str:
            raise OSError(5, "Input/output error")

    for stdin, says in ((None, "stdin is closed"), (Broken(), "stdin cannot be read: input/output error")):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdin", stdin)
            assert tnbench(*run, "--prompt", "-") == 2
        assert capsys.readouterr().err.startswith(f"tnbench: --prompt -: {says}")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", None)
        assert tnbench(*run) == 2
    assert capsys.readouterr().err == "tnbench: stdout is closed: there is nowhere to write the text\n"


@pytest.mark.parametrize("few", [0, command.FEW_PARAMETERS])
def test_small_models_decode_in_one_thread(run: list[str], few: int, capsys: Any, monkeypatch: Any):
    """The prompt is read in all of them, which are there again afterwards; tokens are the same."""
    assert tnbench(*run, "--prompt", "ab", "--tokens", "30") == 0
    text = capsys.readouterr().out
    seen, draw = [], Sampler.__call__

    def watched(self: Sampler, logits: Tensor) -> Tensor:
        seen.append(torch.get_num_threads())
        return draw(self, logits)

    monkeypatch.setattr(command, "FEW_PARAMETERS", few)
    monkeypatch.setattr(Sampler, "__call__", watched)
    torch.set_num_threads(2)
    try:
        assert tnbench(*run, "--prompt", "ab", "--tokens", "30") == 0
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert capsys.readouterr().out == text
    assert seen == [2] + [1 if few else 2] * 29


def test_a_run_that_is_not_there(run: list[str], capsys: Any):
    assert tnbench(run[0], "rum", *run[2:]) == 2
    assert capsys.readouterr().err == f"tnbench: {run[3]} has no run 'rum', did you mean run?\n"


def test_learned_positions_bound_what_is_asked_for(run: list[str], capsys: Any, monkeypatch: Any):
    loaded = load_run("run", Path(run[3]))._replace(model=preset_model("gpt2", context=10))
    monkeypatch.setattr(command, "load_run", lambda *arguments: loaded)
    assert tnbench(*run, "--prompt", "abcd", "--tokens", "8") == 2
    assert "positions end at 10; ask for --tokens 7 at most" in capsys.readouterr().err
    assert tnbench(*run, "--prompt", "abcd" * 4) == 2
    assert "give a shorter prompt" in capsys.readouterr().err


def test_the_example_in_the_docstring():
    tried = doctest.testmod(command)
    assert tried.attempted
    assert not tried.failed
