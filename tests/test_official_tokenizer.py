"""The official checkpoints' tokenizer, and whole checkpoints with it, as far as `tnbench eval`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_official import VOCABULARY, config, save, tokens, weights

from tnbench import cli
from tnbench.errors import RequestError
from tnbench.evaluation import study
from tnbench.interop import official, official_files


@pytest.fixture(scope="module")
def spoken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer.model of as many ids as the vocabulary."""
    sentencepiece = pytest.importorskip("sentencepiece")
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    with path.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(
                ["the cat sat on the mat and ate a fish", "dogs chase cats: 1 < 2 > 1 / 1, all day"] * 50
            ),
            model_writer=file,
            vocab_size=VOCABULARY,
            model_type="bpe",
            hard_vocab_limit=False,
            byte_fallback=False,
            minloglevel=2,
        )
    return path


def pieces(path: Path) -> int:
    import sentencepiece  # pyright: ignore[reportMissingImports]

    return sentencepiece.SentencePieceProcessor(model_file=str(path)).get_piece_size()


def test_a_whole_checkpoint_with_its_tokenizer(spoken: Path, tmp_path: Path) -> None:
    values = config()
    folder = save(tmp_path / "x", values, weights(values))
    (folder / "tokenizer.model").write_bytes(spoken.read_bytes())
    model, tokenizer, said = official.load_official(folder)
    assert said == values
    assert tokenizer.end_of_text == 2
    assert tokenizer.vocab_size == pieces(spoken) <= model.vocab_size

    text = "the cat sat </s> on a dog"
    ids = tokenizer.encode(text)
    assert not {0, 1, 2} & set(ids.tolist())
    assert tokenizer.decode([1, *ids.tolist(), 2, VOCABULARY + 5]) == text
    assert [found.tolist() for found in tokenizer.encode_batch([text, "", "fish"])] == [
        tokenizer.encode(part).tolist() for part in (text, "", "fish")
    ]
    assert ids.dtype == tokenizer.encode("").dtype == "uint32"

    official.write_official(model, tmp_path / "copy", tokenizer)
    again, same, values = official.load_official(tmp_path / "copy")
    assert same.hash == tokenizer.hash
    assert [values[key] for key in ("bos_token_id", "eos_token_id")] == [1, 2]
    assert torch.equal(again(tokens(9)), model(tokens(9)))


def test_tokenizers_that_do_not_fit(spoken: Path, tmp_path: Path) -> None:
    values = config()
    folder = save(tmp_path / "x", values, weights(values))
    path = folder / "tokenizer.model"

    def with_(content: bytes | None, **changes: Any) -> str:
        (folder / "config.json").write_text(json.dumps(config(**changes)))
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(RequestError) as caught:
            official.load_official(folder)
        assert str(caught.value).isprintable()
        return str(caught.value)

    whole = spoken.read_bytes()
    assert "holds no tokenizer.model" in with_(None)
    assert "is no SentencePiece model" in with_(b"nothing of the kind")
    assert "is empty" in with_(b"")
    assert f"it has {pieces(spoken)} ids, the vocabulary of config.json has 32" in with_(whole, vocab_size=32)
    assert "the vocabulary of config.json has 64000" in with_(whole, vocab_size=64000)
    assert "96000, the end of text, is none of them" in with_(whole, eos_token_id=96000)


def test_without_sentencepiece(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    folder = save(tmp_path / "x", config(), {})
    (folder / "tokenizer.model").write_bytes(b"anything")
    with pytest.raises(RequestError, match=r"needs sentencepiece; pip install sentencepiece$"):
        official.load_official(folder)


def test_names_are_listed_in_short() -> None:
    assert official_files.named(["b", "a"]) == "a, b"
    assert official_files.named("fedcba") == "a, b, c, d and 2 more"


def test_a_checkpoint_is_evaluated(spoken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = config()
    folder = save(tmp_path / "official", values, weights(values))
    (folder / "tokenizer.model").write_bytes(spoken.read_bytes())
    arguments = ["eval", str(folder), "--limit", "2", "--device", "cpu", "--results", str(tmp_path)]
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 0
    (line,) = study.Store(tmp_path / study.FOLDER).read()[0]
    assert line["model"].startswith("official ")
    assert line["gold_bits_per_byte"] > 0
    with pytest.raises(SystemExit) as ended:
        cli.main([*arguments, "--faithful"])
    assert ended.value.code == 0
    _, again = study.Store(tmp_path / study.FOLDER).read()[0]
    assert again["identity"]["faithful"]
    assert again["gold_bits_per_byte"] == pytest.approx(line["gold_bits_per_byte"], rel=1e-6)  # in fp32
    assert f"{again['model']}, faithful" in " ".join(
        (tmp_path / study.FOLDER / "table.md").read_text().split()
    )
