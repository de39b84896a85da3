"""What there is: the tables behind `tnbench list` and `tnbench data info`."""

from __future__ import annotations

from typing import Any

from rich.table import Table

from tnbench import registry
from tnbench.ablation.suite_file import shipped_suites
from tnbench.errors import RequestError, nearest
from tnbench.model.presets import SIZES
from tnbench.profiling.kernels.operators import OPERATORS

OTHER = {
    "size": "sizes, the same for every preset",
    "suite": "suites for tnbench ablate",
    "operator": "operators for tnbench profile-kernels",
    "figure": "figures of the paper for tnbench figures",
}


def listing(kind: str | None = None) -> dict[str, list[dict[str, Any]]]:
    """Everything of one kind, or of all kinds, as plain data.

    Raises:
        RequestError: the kind does not exist.
    """
    kinds = {**registry.KINDS, **OTHER}
    if kind is not None and kind not in kinds and kind.removesuffix("s") in kinds:
        kind = kind.removesuffix("s")
    if kind is not None and kind not in kinds:
        raise RequestError(f"no kind {kind!r}, {nearest(kind, kinds)}")
    return {name: _rows(name) for name in kinds if kind in (None, name)}


def _rows(kind: str) -> list[dict[str, Any]]:
    if kind == "figure":
        from tnbench.paper_figures import registry as figures

        return [{"name": name, "summary": figures.module(name).ABOUT.title} for name in figures.MODULES]
    if kind == "size":
        return [
            {
                "name": name,
                "summary": f"width {s.width}, {s.layers} layers, {s.heads} heads of {s.width // s.heads}",
                "non_embedding_parameters": s.layers * (5 * s.width**2 + 3 * s.width * s.channel_width),
            }
            for name, s in SIZES.items()
        ]
    if kind == "suite":
        return [
            {"name": name, "summary": _suite_title(path), "path": str(path)}
            for name, path in shipped_suites().items()
        ]
    if kind == "operator":
        return [
            {
                "name": operator.name,
                "summary": operator.summary,
                "implementations": [entry.name for entry in operator.implementations],
            }
            for operator in OPERATORS.values()
        ]
    rows: list[dict[str, Any]] = [
        {
            "name": entry.name,
            "summary": entry.summary,
            "parameters": entry.defaults(),
            "reference": entry.reference,
        }
        for entry in registry.entries(kind)
    ]
    for name, target in registry.aliases(kind).items():
        settings = ", ".join(f"{key} = {value}" for key, value in target.items() if key != "name")
        rows.append(
            {"name": name, "summary": f"short for {target['name']} with {settings}", "alias_of": target}
        )
    return rows


def _suite_title(path: Any) -> str:
    import yaml

    return (yaml.safe_load(path.read_text()) or {}).get("title", "")


def tables(kind: str | None = None) -> list[Table]:
    """The listing as terminal tables."""
    made = []
    for name, rows in listing(kind).items():
        title = {**registry.KINDS, **OTHER}[name]
        table = Table(
            title=title, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False
        )
        table.add_column(no_wrap=True, style="cyan")
        table.add_column()
        for row in rows:
            extra = ""
            if row.get("parameters"):
                extra = " (" + ", ".join(f"{key} = {value}" for key, value in row["parameters"].items()) + ")"
            elif "non_embedding_parameters" in row:
                extra = f": {row['non_embedding_parameters']:,} non-embedding parameters in transnormerllm"
            reference = f" [{row['reference']}]" if row.get("reference") else ""
            table.add_row(row["name"], _plain(f"{row['summary']}{extra}{reference}"))
        made.append(table)
    return made


def _plain(text: str) -> Any:
    from rich.text import Text

    return Text(text)


def data_table(description: dict[str, Any]) -> Table:
    """A corpus as a table: its splits, and the facts about it."""
    splits = description.get("splits", {})
    columns = list(next(iter(splits.values()), {}))
    facts = {key: value for key, value in description.items() if key != "splits"}
    caption = "\n".join(f"{key.replace('_', ' ')}: {_fact(value)}" for key, value in facts.items())
    table = Table(
        caption=_plain(caption), caption_justify="left", box=None, header_style="bold", pad_edge=False
    )
    table.add_column("split")
    for column in columns:
        table.add_column(column.replace("_", " "), justify="right")
    for name, values in splits.items():
        table.add_row(name, *(_cell(values[column]) for column in columns))
    return table


def _fact(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key.replace('_', ' ')} {inner}" for key, inner in value.items())
    return str(value)


def _cell(value: Any) -> str:
    return (
        f"{value:,}" if isinstance(value, int) else f"{value:.3g}" if isinstance(value, float) else str(value)
    )
