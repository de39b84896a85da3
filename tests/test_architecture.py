"""Who may import whom, read from the source: ground first, never upwards, no circles."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import tnbench

ROOT = Path(tnbench.__file__).parent

FLOORS: list[set[str]] = [
    {"", "errors", "version", "options", "console", "commands"}
    | {"registry", "strict", "config", "resolution", "records", "statistics", "kernels"},
    {"model", "data"},
    {"training", "evaluation", "profiling", "interop", "report"},
    {"ablation"},
    {"paper_figures", "catalogue"},
    {"cli"},
]
"""Parts of the package by floor; a part may import those of its own floor and of those below."""

COMPILER = ("torch._dynamo", "torch._inductor", "torch.nn.attention.bias", "torch.nn.attention.flex")
TRACERS = {"tnbench.profiling.models.fused", "tnbench.profiling.models.tracing"}

HEAVY = {"torch", "pandas", "matplotlib", "transformers", "datasets", "scipy", "pydantic"}


@cache
def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name; linked folders are part of it.

    Not what an export copies into its folder: there, it runs without the package.
    """
    found = {}
    folders = [ROOT]
    while folders:
        for path in sorted(folders.pop().iterdir()):
            if path.is_dir() and path.name not in ("__pycache__", "hf_template"):
                folders.append(path)
            elif path.suffix == ".py":
                parts = path.relative_to(ROOT).with_suffix("").parts
                found[".".join(("tnbench", *(p for p in parts if p != "__init__")))] = path
    return found


def at_once(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are run when a module is imported."""
    for child in ast.iter_child_nodes(node):
        typing_only = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
        if not typing_only and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            yield child
            yield from at_once(child)


def imports(module: str, *, everywhere: bool) -> set[str]:
    """Modules that a module imports when it is imported itself, or also inside functions."""
    tree = ast.parse(modules()[module].read_text())
    found = set()
    for node in ast.walk(tree) if everywhere else at_once(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            source = node.module or ""
            names = {f"{source}.{alias.name}" for alias in node.names}
            found |= names & modules().keys()
            found |= {source} if names - modules().keys() else set()
    return found


def floor(module: str) -> int:
    part = module.partition(".")[2].partition(".")[0]
    floors = [number for number, parts in enumerate(FLOORS) if part in parts]
    assert floors, f"{module} stands on no floor: give {part} its place in FLOORS and in the design"
    return floors[0]


@pytest.mark.parametrize("module", modules())
def test_nothing_is_imported_from_above(module: str):
    for other in imports(module, everywhere=True):
        if other.split(".")[0] == "tnbench":
            assert floor(other) <= floor(module), f"{module} imports {other}"


def test_no_circles():
    graph = {module: imports(module, everywhere=False) & modules().keys() for module in modules()}
    try:
        list(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


@pytest.mark.parametrize("module", modules())
def test_linked_folders_are_imported_through_the_package(module: str):
    tops = {name.split(".")[0] for name in imports(module, everywhere=True)}
    assert not tops & {"kernels", "cli", "ablations", "paper_figures"}


def test_the_command_line_starts_light():
    """What `cli` imports before a command needs it, directly or through this package, is not heavy."""
    seen, ahead = set(), {"tnbench.cli"}
    while ahead:
        module = ahead.pop()
        seen.add(module)
        package = module.rpartition(".")[0]  # is run before the module
        ahead |= {package} - {""} - seen
        ahead |= (imports(module, everywhere=False) if module in modules() else set()) - seen
    assert not {name.split(".")[0] for name in seen} & HEAVY
    assert "tnbench.errors" in seen


def test_no_process_starts_with_the_compiler():
    """torch's compiler takes two seconds to import, of every worker that a command starts."""
    for module in modules():
        found = {name for name in imports(module, everywhere=False) if name.startswith(COMPILER)}
        assert not found or module in TRACERS, f"{module} imports {found}"


def test_the_source_is_seen():
    """The links are followed: operators and the command line are among the modules."""
    assert {"tnbench.cli", "tnbench.kernels.linear_attention.chunked", "tnbench.model.lm"} <= modules().keys()


def test_the_package_is_linked_to_the_folders_at_the_root():
    """In a checkout, not in an installed wheel: two copies of one file would soon differ."""
    if not (ROOT.parent / "pyproject.toml").exists():
        pytest.skip("no checkout")
    for name in ("cli.py", "kernels", "ablations", "paper_figures"):
        assert (ROOT / name).is_symlink(), f"tnbench/{name} is a copy, not a link to ../{name}"
        assert (ROOT / name).resolve() == ROOT.parent / name
