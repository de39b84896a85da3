"""Larger corpora from what a machine has or its package registry gives; none of it is part of this package.

python -m tnbench.data.local_corpora debian-docs debian-docs.jsonl.xz  # 90 MB of English, through apt
python -m tnbench.data.local_corpora python-source code.jsonl.xz       # the installed Python packages

Each line of the file is a document, {"text", "source"}; OUT.manifest.json beside it says which versions of
which packages it was made of, with their hashes: another day's registry gives another corpus, and shows it.

`debian-docs` is documentation, manuals and a dictionary: technical prose, no substitute for text of the web.
Paragraphs of fewer than 80 characters, those that are not mostly letters, and repeated ones are left out.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.metadata
import json
import lzma
import re
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, Annotated, Any, NamedTuple, NoReturn

import typer

from tnbench.commands import run
from tnbench.errors import RequestError, first_line
from tnbench.records import require_writable, unfinished, write_json

PACKAGES = {
    "anarchism": "/markdown/", "apache2-doc": r"/manual/en/", "cmake-doc": "/_sources/",
    "debian-handbook": "/en-US/", "debian-policy": "/_sources/", "debian-reference-en": "",
    "developers-reference": "/_sources/", "dict-gcide": "", "fortunes": "", "git-doc": r"\.txt",
    "gnome-user-docs": "/help/C/", "libreoffice-help-en-us": "", "linux-doc-6.1": "/Documentation/(?!transl)",
    "manpages": "", "manpages-dev": "", "octave-doc": "", "perl-doc": r"/pod/(?!perl(cn|jp|ko|tw))|/man3/",
    "postgresql-doc-15": "", "python-django-doc": "/_sources/", "python3.11-doc": "/_sources/",
    "sqlite3-doc": "", "zsh-doc": "",
}  # fmt: skip
"""Of Debian 12, with the paths that are read: English, and one of several formats. All are free, each under
its own licence, which its folder /usr/share/doc/PACKAGE states."""
SHORTEST = 80
"""Characters of a paragraph."""
LETTERS = 0.75
"""Share of letters among the characters of a paragraph that are no spaces, at least."""
LARGEST_SOURCE = 1 << 20
"""Bytes of a source file: longer ones are tables."""


class Document(NamedTuple):
    source: str
    """package/path"""
    text: str


class _Text(HTMLParser):
    """The text of a page: block elements end a paragraph, code and navigation are left out."""

    BLOCKS = frozenset(
        (
            "p",
            "div",
            "li",
            "td",
            "th",
            "tr",
            "h1",
            "h2",
            "h3",
            "h4",
            "h5",
            "h6",
            "dd",
            "dt",
            "pre",
            "br",
            "dl",
        )
    ) | {"title", "section", "table", "ul", "ol"}
    HIDDEN = frozenset(("script", "style", "nav", "pre", "head"))

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self._hidden += tag in self.HIDDEN
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_endtag(self, tag: str) -> None:
        self._hidden = max(0, self._hidden - (tag in self.HIDDEN))
        if tag in self.BLOCKS:
            self.parts.append("\n\n")

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data)


def of_html(text: str) -> str:
    """The text of a page or of another document in tags."""
    parser = _Text()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts)


def of_roff(text: str) -> str:
    """The running text of a manual page.

    >>> of_roff('.TH X\\nThe \\\\fBopen\\\\fP call \\\\- it opens.\\n.PP\\nNext.')
    'The open call - it opens.\\n\\nNext.'
    """
    lines = []
    for line in text.splitlines():
        if line.startswith((".", "'")):
            word, _, rest = line[1:].partition(" ")
            if word in ("B", "I", "BR", "IR", "RB", "RI", "BI", "IB"):
                lines.append(rest.replace('"', ""))
            elif word in ("PP", "P", "LP", "TP", "IP", "SH", "SS", "RE", "RS"):
                lines.append("")
            continue
        lines.append(line)
    joined = re.sub(r"\\f(\[[^]]*\]|\(..|.)", "", "\n".join(lines))
    return re.sub(r"\\(.)", lambda found: {"-": "-", "e": "\\"}.get(found[1], ""), joined).strip("\n")


def of_pod(text: str) -> str:
    """The running text of Perl's documentation.

    >>> of_pod('=head1 NAME\\n\\nSee L<perlre> and C<< a -> b >>.\\n\\n  code')
    'See perlre and a -> b.'
    """
    kept = [part for part in text.split("\n\n") if not part.startswith(("=", " ", "\t", "\n="))]
    plain = "\n\n".join(kept)
    plain = re.sub(r"[A-Z]<<+ (.*?) >>+", r"\1", plain, flags=re.DOTALL)
    return re.sub(r"[A-Z]<([^<>]*)>", lambda found: found[1].rpartition("|")[0] or found[1], plain)


READERS: dict[str, Callable[[str], str]] = {
    ".html": of_html, ".htm": of_html, ".page": of_html, ".xhtml": of_html, ".pod": of_pod, ".rst": str,
    ".txt": str, ".md": str, ".dict": str,
}  # fmt: skip


def paragraphs(text: str, seen: set[bytes]) -> Iterator[str]:
    """Paragraphs of prose that have not been seen before, their white space made single.

    >>> list(paragraphs('x = 1\\n\\n' + 'A line of words\\n' * 8, set()))[0][:31]
    'A line of words A line of words'
    """
    for part in re.split(r"\n\s*\n", text):
        plain = " ".join(part.split())
        solid = plain.replace(" ", "")
        if len(plain) < SHORTEST or sum(map(str.isalpha, solid)) < LETTERS * len(solid):
            continue
        mark = hashlib.blake2b(plain.encode(), digest_size=12).digest()
        if mark not in seen:
            seen.add(mark)
            yield plain


def read_file(path: Path) -> str | None:
    """The running text of a file of documentation; None for one of another kind."""
    name, packed = path.name, path.suffix in (".gz", ".dz")
    name = name.rsplit(".", 1)[0] if packed else name
    manual = path.parent.name.startswith("man") and path.parent.parent.name == "man"
    reader = of_roff if manual else READERS.get(Path(name).suffix)
    if path.parent.name == "fortunes" and not path.suffix:
        reader = str
    if reader is None or path.is_symlink() or not path.is_file():
        return None
    raw = path.read_bytes()
    text = (gzip.decompress(raw) if packed else raw).decode("utf-8", "replace")
    return reader(text)


def of_packages(folder: Path, packages: Mapping[str, str]) -> Iterator[Document]:
    """The documents of unpacked packages, one folder for each, on paths in which a pattern is found."""
    seen: set[bytes] = set()
    for name, pattern in packages.items():
        for path in sorted((folder / name).rglob("*")):
            text = read_file(path) if re.search(pattern, path.as_posix()) else None
            kept = "\n\n".join(paragraphs(text, seen)) if text else ""
            if kept:
                yield Document(f"{name}/{path.relative_to(folder / name)}", kept + "\n")


def _unpacked(folder: Path) -> dict[str, Any]:
    """Download and unpack the packages; their versions and hashes."""
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise RequestError(f"debian-docs needs {tool}, as Debian 12 and its relatives have it")
    found = {}
    for name in PACKAGES:
        with tempfile.TemporaryDirectory() as place:
            _call("apt-get", "download", name, where=place)
            (package,) = Path(place).glob("*.deb")
            found[name] = {
                "version": _call("dpkg-deb", "-f", str(package), "Version", where=place).strip(),
                "sha256": hashlib.sha256(package.read_bytes()).hexdigest(),
            }
            _call("dpkg-deb", "-x", str(package), str(folder / name), where=place)
    return found


def _call(*words: str, where: str) -> str:
    done = subprocess.run(words, cwd=where, capture_output=True, text=True)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise RequestError(f"{' '.join(words[:3])}: {said[-1]}; apt-get update may help")
    return done.stdout


def of_python(folder: Path) -> Iterator[Document]:
    """Every different source file of the installed packages, in the order of their names."""
    seen: set[bytes] = set()
    for path in sorted(folder.rglob("*.py")):
        if path.is_symlink() or not path.is_file():
            continue
        raw = path.read_bytes()
        mark = hashlib.blake2b(raw, digest_size=16).digest()
        if not SHORTEST <= len(raw) <= LARGEST_SOURCE or mark in seen:
            continue
        seen.add(mark)
        try:
            yield Document(str(path.relative_to(folder)), raw.decode())
        except UnicodeDecodeError:
            continue


def write(documents: Iterable[Document], out: Path, largest: int | None) -> dict[str, Any]:
    """Write a corpus as a whole or not at all, up to so many bytes of text; gives its size."""
    opener = lzma.open if out.suffix == ".xz" else gzip.open
    place, total = unfinished(out), hashlib.sha256()
    count = size = 0
    try:
        with opener(place, "wb") as file:
            stream: IO[bytes] = file  # type: ignore[assignment]
            for document in documents:
                raw = document.text.encode()
                if largest is not None and size + len(raw) > largest:
                    break
                stream.write(json.dumps(document._asdict(), ensure_ascii=False).encode() + b"\n")
                total.update(raw)
                count, size = count + 1, size + len(raw)
        place.replace(out)
    except OSError as error:
        place.unlink(missing_ok=True)
        raise RequestError(f"{out} cannot be written: {first_line(error)}") from error
    return {"documents": count, "bytes": size, "sha256_of_texts": total.hexdigest()}


def _require_out(out: Path) -> None:
    if not out.name.endswith((".jsonl.xz", ".jsonl.gz")):
        raise RequestError(f"{out}: the name must end in .jsonl.xz or .jsonl.gz")
    require_writable(out.parent)


def _finish(out: Path, manifest: dict[str, Any]) -> None:
    write_json(out.with_name(out.name + ".manifest.json"), manifest)
    typer.echo(f"{out}: {manifest['documents']:,} documents, {manifest['bytes'] / 1e6:.1f} MB of text")


Out = Annotated[Path, typer.Argument(metavar="OUT", help="NAME.jsonl.xz or NAME.jsonl.gz")]
Megabytes = Annotated[float | None, typer.Option(min=0.001, help="Of text, at most.")]
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Make a larger corpus of local sources.")


@app.command("debian-docs")
def debian_docs(out: Out, megabytes: Megabytes = None) -> None:
    """English documentation of Debian's packages, downloaded through apt; nothing is installed."""
    _require_out(out)
    with tempfile.TemporaryDirectory() as folder:
        packages = _unpacked(Path(folder))
        size = write(of_packages(Path(folder), PACKAGES), out, _bytes(megabytes))
    _finish(out, {"kind": "debian-docs", **size, "packages": packages})


@app.command("python-source")
def python_source(out: Out, megabytes: Megabytes = None) -> None:
    """The source of the Python packages that are installed here."""
    _require_out(out)
    size = write(of_python(Path(sysconfig.get_path("purelib"))), out, _bytes(megabytes))
    versions = {one.name: one.version for one in importlib.metadata.distributions()}
    _finish(out, {"kind": "python-source", **size, "packages": dict(sorted(versions.items()))})


def _bytes(megabytes: float | None) -> int | None:
    return None if megabytes is None else int(megabytes * 1e6)


def main(arguments: list[str] | None = None) -> NoReturn:
    """The command line of this module."""
    run(app, arguments)


if __name__ == "__main__":
    main()
