"""The machine that is measured, and the versions of what it runs."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from tnbench.errors import RequestError
from tnbench.records import provenance


def machine(device: str) -> tuple[str, str]:
    """The kind of device and the machine's name; `auto` is the GPU where torch sees one.

    Raises:
        RequestError: cuda is asked for, and torch sees no GPU.
    """
    import torch

    there = torch.cuda.is_available()
    if device == "cuda" and not there:
        raise RequestError("--device cuda: torch sees no GPU here; use --device cpu")
    if device == "cpu" or not there:
        return "cpu", provenance()["processor"]
    return "cuda", torch.cuda.get_device_name()


def installed_version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
