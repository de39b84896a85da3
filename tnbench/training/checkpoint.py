"""Checkpoints: safetensors files that are replaced as a whole, and checked as a whole when they are read.

`checkpoint/training.safetensors` holds the tensors of the model (`model.<name>`) and of the optimizer
(`optimizer.<parameter>.<name>`) and the text of the metrics up to then, so that a run can go on from this
file alone; `checkpoint/model.safetensors` holds the final weights under their own names. A tensor that two
names share is stored once. The metadata holds a JSON record and a CRC-32 over it and all tensors. Reading
executes no code.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tnbench.config import canonical_json
from tnbench.records import sync, unfinished

METRICS = "metrics"
"""Name of the tensor whose bytes are the text of the metrics."""


class CheckpointError(RuntimeError):
    """A checkpoint is damaged, or belongs to something else."""


def save_weights(path: Path, model: nn.Module, record: Mapping[str, Any]) -> None:
    """Write a model's weights.

    Raises:
        OSError: the disk is full or cannot be written; a former file at `path` is left as it was.
    """
    _write(path, _tensors(model), record)


def load_weights(path: Path, model: nn.Module) -> dict[str, Any]:
    """Read weights into a model of the same shape; gives the record that they were written with.

    Raises:
        CheckpointError: the file is missing or damaged, or holds other tensors than the model.
    """
    record, tensors = _read(path)
    _copy(path, tensors, model)
    return record


def save_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, record: Mapping[str, Any], metrics: bytes
) -> None:
    """Write what is needed to go on: weights, optimizer state, `record` and the metrics so far.

    Args:
        path: where to.
        model: the model.
        optimizer: its optimizer.
        record: JSON, among others `run_id`.
        metrics: the text of metrics.jsonl that goes with this state.

    Raises:
        OSError: the disk is full or cannot be written; a former file at `path` is left as it was.
    """
    tensors = {f"model.{name}": tensor for name, tensor in _tensors(model).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state[parameter].items() if parameter in optimizer.state else ():
            tensors[f"optimizer.{name}.{key}"] = value
    tensors[METRICS] = torch.from_numpy(np.frombuffer(metrics, np.uint8).copy())
    _write(path, tensors, record)


def load_training(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, run_id: str
) -> tuple[dict[str, Any], bytes]:
    """Read weights and optimizer state back; gives the record and the metrics. An error changes nothing.

    Raises:
        CheckpointError: the file is damaged, belongs to another run than `run_id`, or does not fit the model.
    """
    record, tensors = _read(path)
    if record.get("run_id") != run_id:
        raise CheckpointError(f"{path.name} belongs to run {record.get('run_id')}, not to {run_id}")
    if METRICS not in tensors:
        raise CheckpointError(f"{path.name} holds no metrics")
    parameters = dict(model.named_parameters())
    state: dict[str, dict[str, Tensor]] = {}
    for full, tensor in tensors.items():
        if full.startswith("optimizer."):
            name, _, key = full.removeprefix("optimizer.").rpartition(".")
            if name not in parameters or (tensor.ndim and tensor.shape != parameters[name].shape):
                raise CheckpointError(f"{path.name}: {full} does not fit the model")
            state.setdefault(name, {})[key] = tensor.clone()  # out of the mapped file
    weights = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
    _copy(path, weights, model)

    names = {parameter: name for name, parameter in parameters.items()}
    order = [names[p] for group in optimizer.param_groups for p in group["params"]]
    indexed = {index: state[name] for index, name in enumerate(order) if name in state}
    optimizer.load_state_dict({"state": indexed, "param_groups": optimizer.state_dict()["param_groups"]})
    return record, tensors[METRICS].numpy().tobytes()


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without the further names of shared tensors."""
    seen: set[tuple[int, torch.Size]] = set()
    kept: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        key = (tensor.data_ptr(), tensor.shape)
        if not tensor.numel() or key not in seen:
            kept[name] = tensor
            seen.add(key)
    return kept


def _copy(path: Path, tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    expected = _tensors(model)
    different = sorted(expected.keys() ^ tensors.keys())
    different += [
        name for name in expected if name in tensors and expected[name].shape != tensors[name].shape
    ]
    if different:
        raise CheckpointError(f"{path.name} does not fit the model in {different[0]}")
    with torch.no_grad():
        for name, tensor in tensors.items():
            expected[name].copy_(tensor)


def _checksum(tensors: Mapping[str, Tensor], record: str) -> str:
    total = zlib.crc32(record.encode())
    for name in sorted(tensors):
        total = zlib.crc32(name.encode(), total)
        if tensors[name].numel():
            total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), total)  # type: ignore[arg-type]
    return f"{total:08x}"


def _write(path: Path, tensors: Mapping[str, Tensor], record: Mapping[str, Any]) -> None:
    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = canonical_json(record)
    metadata = {"format": "pt", "record": text, "crc32": _checksum(here, text)}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        save_file(here, temporary, metadata)
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        if code is None:
            raise
        number = int(code[1])
        raise OSError(number, os.strerror(number), str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        text = metadata["record"]
        record = json.loads(text)
        stored = metadata["crc32"]
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path.name} cannot be read: {error}") from error
    if _checksum(tensors, text) != stored:
        raise CheckpointError(f"{path.name} is damaged: its checksum differs")
    return record, tensors
