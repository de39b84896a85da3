"""Suite files with mistakes: changed values, keys and places, and changed bytes, as hypothesis strategies."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import yaml
from hypothesis import strategies as st

from tnbench import registry
from tnbench.ablation.suite_file import shipped_suites
from tnbench.config import DataConfig, ModelConfig, TrainingConfig
from tnbench.model.presets import SIZES
from tnbench.report.results import METRICS

EVERY_KEY = """
title: every key that a suite file has
base: {model.preset: transnormerllm, model.size: 0.1m, data.context: 64, training.tokens: 64_000}
variants:
  gate: {}
  again: {repeat: true}
  no-gate: {model.gate: false}
  decay: {model.decay: {name: fixed, value: [0.9, 0.99, 0.999, 1.0]}, model.mixer: [gla, norm-attention]}
seeds: {tune: [100, 101], report: [0, 1, 2, 3]}
tune: {grid: {training.learning_rate: [0.0005, 0.001, 0.002]}, widen: 1}
match: {by: parameters, tolerance: 0.005}
fixed: "one corpus, one context length, one optimizer"
analysis: {metric: val_bits_per_byte, margin: 0.005, alpha: 0.05}
paper: {table: "2307.14995v2 table 4"}
"""


def originals() -> dict[str, str]:
    """Suite files that are right, on the small corpus; of those with examples, the one that takes no time."""
    texts = {name: path.read_text() for name, path in shipped_suites().items()}
    on_text = {name: text for name, text in texts.items() if "data.corpus:" not in text}
    return {
        **{
            name: text.replace("\nbase:\n", "\nbase:\n  data.corpus: words.txt\n")
            for name, text in on_text.items()
        },
        "digits": texts["digits"],
        "every-key": EVERY_KEY.replace("base: {", "base: {data.corpus: words.txt, "),
    }


# What is put in the place of what was there

RAW = [
    "!!timestamp x",
    "!!bool x",
    "!!int x",
    "!!int ''",
    "!!float x",
    "!!null x",
    "!!binary x",
    "!!binary YQ==",
    "!!set {a, b}",
    "!!omap [a: 1]",
    "!!pairs [a: 1]",
    "!!python/object/apply:os.getcwd []",
    "!mine x",
    "&a [*a]",
    "&a {a: *a}",
    "*nothing",
    "{<<: {model.gate: false}}",
    "{<<: [1]}",
    "{[a]: 1}",
    "{? {a: 1}: 1}",
    "{1: 1}",
    "{null: 1}",
    "{true: 1}",
    "{2001-01-01: 1}",
    "{.nan: 1}",
    "2001-01-01",
    "2001-01-01 10:00:00",
    "2001-99-99",
    "0x" + "f" * 5000,
    "9" * 5000,
    "1" + ":59" * 500,
    "0b1",
    "0o17",
    "1_000",
    "1e400",
    "=",
    "<<",
    '"\\ud800"',
    '"\\e[31mred"',
    '"\\0"',
    '"\\u202e"',
    "[" * 300,
    "[" * 300 + "]" * 300,
    "{a: " * 300 + "1" + "}" * 300,
    "|\n  text",
    "- x",
    "x: y",
    "# ",
    "@",
    "`",
    "%",
    "",
    # each level repeats the one before ten times over: small as a file, endless as a tree
    "{a: &1 {x: 1, y: 1}"
    + "".join(
        f", a{n + 1}: &{n + 1} " + "{" + ", ".join(f"k{k}: *{n}" for k in range(10)) + "}"
        for n in range(1, 12)
    )
    + "}",
    "[&1 [x, y]" + "".join(f", &{n + 1} [" + ", ".join([f"*{n}"] * 10) + "]" for n in range(1, 12)) + "]",
]
RAW_TOKEN = "RAW{:03d}RAW"
NUMBERS = [0, 1, 2, 3, 5, 7, 8, 33, 64, 100, 999, 1000, 1001, 4096, 10_000, 10_001, 10**6, 2**20, 10**9]
NUMBERS += [2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, 2**63, 2**64, 10**18, 10**30, 10**400]
FLOATS = [0.5, 0.1, 1.0, 1.5, 1e-9, 1e-300, 5e-324, 1e17, 1e308, float("inf"), float("nan"), -0.0]
WORDS = [
    "",
    " ",
    "none",
    "null",
    "true",
    "-",
    "λ",
    "a b",
    "é" * 50,
    "x" * 5000,
    "\x00",
    "\x1b[2J",
    "\n",
    "\u2028",
]
WORDS += ["\ud800", "../up", "words.txt", "no.txt", "hf:", "bytes", "bpe-300", "bpe-9999999", "bpe-0", "cuda"]
TEXTS = {"title", "fixed", "paper"}
"""Keys under which any text will do."""
SECTIONS = {"model": ModelConfig, "data": DataConfig, "training": TrainingConfig}
DOTTED = [f"{section}.{key}" for section, model in SECTIONS.items() for key in model.model_fields]
DOTTED += ["model.norm", "model.norm.eps", "model.decay.name", "model.decay.value", "model.mixer.block"]
TOP = ["title", "base", "variants", "seeds", "tune", "match", "fixed", "analysis", "paper"]
INNER = ["grid", "widen", "by", "tolerance", "metric", "margin", "alpha", "report", "table", "repeat", "name"]
KEYS = [*TOP, *INNER, *DOTTED, "model", "data", "training"]
NAMES = sorted({*(entry.name for entry in registry.entries()), "mix", "retention", "1m", "1b", "175b", "v1"})
NAMES += ["parameters", "flops", "state", "val_loss_nats", "train_loss_nats", "quadratic", "recurrent"]

SCALARS = st.one_of(
    st.sampled_from(NUMBERS),
    st.sampled_from(NUMBERS).map(lambda number: -number),
    st.sampled_from(FLOATS),
    st.sampled_from([None, True, False]),
    st.sampled_from(WORDS),
    st.sampled_from(NAMES),
    st.sampled_from(KEYS),
    st.integers(0, len(RAW) - 1).map(RAW_TOKEN.format),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from([*KEYS, *NAMES]), inner, max_size=3)
    ),
    max_leaves=5,
)


def paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where values stand in a tree, as the keys that lead there."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        yield (*path, key)
        yield from paths(value, (*path, key))


def at(tree: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def plausible(key: Any) -> st.SearchStrategy[Any]:
    """Values that a key may take, and numbers of any size."""
    last = str(key).split(".")[-1]
    kind = "norm" if last.endswith("norm") else last
    if kind in registry.KINDS:
        named = st.sampled_from([*registry.names(kind), *registry.aliases(kind)])
        return st.one_of(named, named.map(lambda name: {"name": name}), st.lists(named, max_size=3))
    if last in ("gate", "repeat", "temperature", "compile", "tie_embeddings", "scale_embeddings"):
        return st.booleans()
    if last in ("report", "tune", "seeds", "learning_rate", "value"):
        return st.lists(st.sampled_from([*NUMBERS[:10], *FLOATS]), max_size=4) | st.sampled_from(NUMBERS)
    choices: list[Any] = {
        "by": ["parameters", "flops", "state"],
        "metric": sorted(METRICS),
        "size": sorted(SIZES),
        "implementation": ["quadratic", "chunked", "recurrent", "original", "auto"],
        "tokenizer": ["bytes", "bpe-300", *WORDS],
        "corpus": ["words.txt", *WORDS],
    }.get(last, [*NUMBERS, *FLOATS])
    return st.sampled_from(choices)


@st.composite
def misspelt(draw: st.DrawFn, key: str) -> str:
    place = draw(st.integers(0, max(0, len(key) - 1)))
    letter = draw(st.sampled_from(["", "x", ".", "_", " ", key[place : place + 1] * 2]))
    return key[:place] + letter + key[place + 1 :]


@st.composite
def mutated_tree(draw: st.DrawFn, tree: Any) -> Any:
    """One change to a tree: a value, a key or a place."""
    tree = copy.deepcopy(tree)
    places = list(paths(tree))
    if not places:
        return draw(VALUES)
    tops = {path[0] for path in places}
    top = draw(st.sampled_from(sorted(tops - TEXTS, key=str) or list(tops)))
    wanted = TEXTS if draw(st.integers(0, 9)) == 0 else {top}  # texts seldom: they say little about the rest
    path = draw(st.sampled_from([path for path in places if path[0] in wanted] or places))
    parent, key, value = at(tree, path[:-1]), path[-1], at(tree, path)
    change = draw(
        st.sampled_from(["value", "value", "drop", "rename", "copy", "swap", "wrap", "add", "type"])
    )
    if change == "value":
        parent[key] = draw(plausible(key) | plausible(key) | VALUES)
    elif change == "drop":
        del parent[key]
    elif change == "rename" and isinstance(parent, dict):
        name = draw(st.one_of(misspelt(str(key)), st.sampled_from([*KEYS, *WORDS])))
        items = [(name if old == key else old, item) for old, item in parent.items()]
        parent.clear()
        parent.update(items)
    elif change in ("copy", "swap"):
        other = draw(st.sampled_from(places))
        inside = path[: len(other)] == other or other[: len(path)] == path
        if not inside:
            if change == "swap":
                parent[key] = at(tree, other)
            at(tree, other[:-1])[other[-1]] = copy.deepcopy(value)
    elif change == "wrap":
        parent[key] = draw(
            st.sampled_from([[value], {"name": value}, {"model": value}, [value, value], {"": value}])
        )
    elif change == "add":
        if isinstance(value, dict):
            name = draw(st.sampled_from(DOTTED if "base" in path or "variants" in path else KEYS))
            value[name] = draw(plausible(name) | plausible(name) | VALUES)
        elif isinstance(value, list):
            value += draw(st.lists(SCALARS, max_size=3))
    elif change == "type":
        parent[key] = draw(st.sampled_from([str(value), [], {}, [value], None, bool(value), len(str(value))]))
    return tree


PIECES = [
    b"\t",
    b"\n",
    b"\r",
    b"\r\n",
    b" ",
    b"  ",
    b":",
    b": ",
    b"- ",
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"#",
    b"&a ",
]
PIECES += [
    b"*a",
    b"!!",
    b"|",
    b">",
    b"%",
    b"@",
    b"'",
    b'"',
    b"\\",
    b"?",
    b"0",
    b"9" * 30,
    b"-",
    b"e",
    b".",
    b"\x00",
]
PIECES += [
    b"\x1b[31m",
    b"\x7f",
    b"\xff",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xc3",
    b"\xc2\x85",
    b"\xe2\x80\xa8",
    b"---\n",
]
PIECES += [
    b"...\n",
    b"<<: ",
    b"variants:\n",
    b"  model.gate: false\n",
    "λ".encode(),
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
]


@st.composite
def mutated_bytes(draw: st.DrawFn, content: bytes) -> bytes:
    """One change to a file's bytes."""
    start = draw(st.integers(0, len(content)))
    end = min(len(content), start + draw(st.integers(0, 12)))
    change = draw(
        st.sampled_from(["delete", "insert", "insert", "replace", "truncate", "repeat", "flip", "move"])
    )
    if change == "truncate":
        return content[:start]
    if change == "repeat":
        return content[:end] + content[start:end] + content[end:]
    if change == "flip" and start < len(content):
        return content[:start] + bytes([content[start] ^ 1 << draw(st.integers(0, 7))]) + content[start + 1 :]
    if change == "move":
        rest = content[:start] + content[end:]
        to = draw(st.integers(0, len(rest)))
        return rest[:to] + content[start:end] + rest[to:]
    piece = b"" if change == "delete" else draw(st.sampled_from(PIECES) | st.text(max_size=2).map(str.encode))
    return content[:start] + piece + content[start if change == "insert" else end :]


@st.composite
def mutated_files(draw: st.DrawFn) -> bytes:
    text = draw(st.sampled_from(sorted(originals().values())))
    kind = draw(st.sampled_from(["tree", "tree", "tree", "bytes", "both"]))
    if kind != "bytes":
        tree = yaml.safe_load(text)
        for _ in range(draw(st.sampled_from([1, 1, 2, 3]))):
            tree = draw(mutated_tree(tree))
        text = yaml.safe_dump(
            tree, sort_keys=False, width=10**6, default_flow_style=draw(st.sampled_from([None, False, True]))
        )
        for number, raw in enumerate(RAW):
            text = text.replace(RAW_TOKEN.format(number), raw)
    content = text.encode()
    if kind != "tree":
        for _ in range(draw(st.integers(1, 3))):
            content = draw(mutated_bytes(content))
    return content
