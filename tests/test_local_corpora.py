"""Corpora made of what a machine has: formats of documentation, filters, and a file that is whole."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path

import pytest

from tnbench.data import local_corpora
from tnbench.data.corpora import find_corpus

PROSE = "The kernel hands the page to the reader, who turns it over and finds another sentence there. "


def command(*arguments: object) -> int:
    with pytest.raises(SystemExit) as left:
        local_corpora.main([str(argument) for argument in arguments])
    return int(left.value.code or 0)


def test_the_text_of_a_page():
    page = f"<head><title>no</title></head><p>{PROSE}<b>bold</b> end.</p><pre>x = 1</pre><li>Item &amp; more"
    text = local_corpora.of_html(page)
    assert f"{PROSE}bold end." in text
    assert "x = 1" not in text
    assert "no" not in text.split()
    assert text.strip().endswith("Item & more")


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (PROSE, 1),
        (PROSE + "\n\n" + PROSE, 1),
        (PROSE + "\n \n" + PROSE.upper(), 2),
        ("short words", 0),
        ("| 1 | 2.5 | 3.75 | 0x1f | == | -- | " * 5, 0),
    ],
)
def test_which_paragraphs_are_kept(text: str, kept: int):
    assert len(list(local_corpora.paragraphs(text, set()))) == kept


def packages(folder: Path) -> Path:
    """Two unpacked packages with files of every kind."""
    files = {
        "one/usr/share/man/man3/open.3.gz": gzip.compress(f".TH X\n.PP\n{PROSE}\\fBopen\\fP.\n".encode()),
        "one/usr/share/doc/one/guide.rst": (PROSE + "In the guide.").encode(),
        "one/usr/share/doc/one/picture.png": b"\x89PNG",
        "two/usr/share/games/fortunes/wisdom": (PROSE + "A fortune.").encode(),
        "two/usr/share/dictd/words.dict.dz": gzip.compress((PROSE + "A word.").encode()),
        "two/usr/share/doc/two/de/guide.txt": (PROSE + "Elsewhere.").encode(),
    }
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def test_documents_of_packages(tmp_path: Path):
    found = list(local_corpora.of_packages(packages(tmp_path), {"one": "", "two": "/games/|/dictd/"}))
    assert [(one.source.split("/")[0], one.text[len(PROSE) :]) for one in found] == [
        ("one", "In the guide.\n"),
        ("one", "open.\n"),
        ("two", "A word.\n"),
        ("two", "A fortune.\n"),
    ]


def test_a_corpus_of_source_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = tmp_path / "site"
    place.mkdir()
    source = "def area(side):\n    return side * side\n" * 4
    (place / "a.py").write_text(source)
    (place / "b.py").write_text(source)  # the same again
    (place / "c.py").write_text(source.replace("area", "square"))
    (place / "d.py").write_bytes(b"\xff\xfe" * 100)
    (place / "e.py").write_text("x = 1\n")
    monkeypatch.setattr(local_corpora.sysconfig, "get_path", lambda kind: str(place))
    for out, opener in ((tmp_path / "code.jsonl.xz", lzma.open), (tmp_path / "code.jsonl.gz", gzip.open)):
        assert command("python-source", out) == 0
        with opener(out, "rt") as file:
            assert [json.loads(line)["source"] for line in file] == ["a.py", "c.py"]
        manifest = json.loads(out.with_name(out.name + ".manifest.json").read_text())
        assert (manifest["documents"], manifest["bytes"]) == (2, 2 * len(source) + 8)
        assert manifest["packages"]
    assert len(list(find_corpus(str(tmp_path / "code.jsonl.xz")).read())) == 2
    assert command("python-source", tmp_path / "less.jsonl.gz", "--megabytes", 0.001) == 0
    assert json.loads((tmp_path / "less.jsonl.gz.manifest.json").read_text())["bytes"] <= 1000


def test_what_is_wrong_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    assert command("python-source", tmp_path / "code.txt") == 2
    assert "must end in .jsonl.xz or .jsonl.gz" in capsys.readouterr().err
    monkeypatch.setattr(local_corpora.shutil, "which", lambda tool: None)
    assert command("debian-docs", tmp_path / "docs.jsonl.xz") == 2
    assert "needs apt-get" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(tmp_path: Path):
    def broken():
        yield local_corpora.Document("a", PROSE)
        raise OSError(28, "No space left on device")

    out = tmp_path / "docs.jsonl.gz"
    with pytest.raises(local_corpora.RequestError, match=r"cannot be written: .*No space left"):
        local_corpora.write(broken(), out, None)
    assert list(tmp_path.iterdir()) == []
