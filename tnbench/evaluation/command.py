"""`tnbench generate`, behind the command line."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tnbench.errors import INTERRUPTED, RequestError, shortened
from tnbench.evaluation import sampling
from tnbench.evaluation.generation import Decoder, generate, inference_model
from tnbench.evaluation.loading import load_run
from tnbench.evaluation.streaming import UNKNOWN, TextStream
from tnbench.model import LanguageModel
from tnbench.profiling.kernels.memory import available

FEW_PARAMETERS = 10_000_000
"""Below it, a token is decoded in one thread on a CPU. Measured with 1 and 2 threads on 2 cores: from 0.1m to
3m parameters both take about the same time (0.7 to 3 ms for TransNormerLLM), from 10m on two are up to 1.5
times as fast. Where another process has one of the cores, two take 3 to 30 times as long, as each of the
small products waits for the slower thread."""
LARGEST_SEED = 2**63 - 1
SAMPLER_BYTES = 8192
"""Of a sample's generator and text, at least."""


def generate_text(
    name: str,
    *,
    prompt: str,
    tokens: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    seed: int,
    samples: int,
    device: str,
    precision: str | None,
    results: Path,
) -> int:
    """Continue a prompt with a run's model: the text to stdout as it is made, one line about it to stderr.

    The prompt is not repeated. An empty one stands for the beginning of a document. A sample ends with its
    document, at the latest after `tokens` tokens.

    On a CPU, models of fewer than `FEW_PARAMETERS` parameters decode in one thread: see there. The prompt is
    read in all of them.

    Args:
        name, results: as in `loading.load_run`.
        prompt: the text, or `-` for stdin.
        tokens: how many are made of each sample at most.
        temperature, top_k, top_p: as in `sampling.distribution`.
        seed: sample n draws with the seed `seed` + n.
        samples: how many, all at once; the first is shown as it is made, the others after it.
        device: `auto`, `cpu` or `cuda`.
        precision: `fp32`, `bf16` or `fp16`; None for bf16 on a GPU and fp32 elsewhere.

    Returns:
        The exit status: 0, or 130 if interrupted.

    Raises:
        RequestError: the request is wrong; nothing has been generated.
    """
    try:
        sampling.check(temperature, top_k, top_p)
    except ValueError as error:
        raise RequestError(f"--{error}") from error
    if seed > LARGEST_SEED:
        raise RequestError(f"--seed {shortened(seed)}: the largest is {LARGEST_SEED}, 2^63 - 1")
    if sys.stdout is None:
        raise RequestError("stdout is closed: there is nowhere to write the text")
    place = _device(device)
    text = _text(prompt)
    run = load_run(name, results, place)
    end = run.tokenizer.end_of_text
    ids = run.tokenizer.encode(text).tolist() or [end]
    model = inference_model(run.model, precision or ("bf16" if place == "cuda" else "fp32"))  # type: ignore[arg-type]
    capacity = len(ids) + tokens - 1
    _require_positions(model, len(ids), tokens)
    _require_memory(model, samples, capacity, place)
    decoder = Decoder(model, samples, capacity)
    sampler = sampling.Sampler(
        samples, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, device=place
    )
    made = generate(decoder, torch.tensor([ids]), sampler, tokens=tokens, end=end)
    if place == "cpu" and model.parameter_counts()["total"] < FEW_PARAMETERS:
        made = _in_one_thread(made)
    shown = _Samples([TextStream(run.tokenizer, ids) for _ in range(samples)], end)
    try:
        interrupted = shown.all_of(made)
    except BrokenPipeError:  # the reader of a pipe has gone, as in `tnbench generate … | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    size = _size(decoder.state_bytes / samples)
    line = [
        f"{'interrupted after ' if interrupted else ''}{_count(shown.tokens)} in {shown.seconds:.2f} s",
        *shown.speeds(len(ids)),
        f"state of {size} a sample, the same for any length"
        if model.constant_state
        else f"KV cache of {size} a sample for {_count(capacity)}",
    ]
    print("; ".join(line), file=sys.stderr)
    return INTERRUPTED if interrupted else 0


def _in_one_thread(made: Iterator[Tensor]) -> Iterator[Tensor]:
    """The same tokens, all but the first, which comes with the prompt, made in one thread."""
    before = torch.get_num_threads()
    try:
        for row in made:
            torch.set_num_threads(1)
            yield row
    finally:
        torch.set_num_threads(before)


class _Samples:
    """Texts of all samples, the first printed as it grows."""

    def __init__(self, streams: Sequence[TextStream], end: int) -> None:
        self._streams, self._end = streams, end
        self._texts: list[list[str]] = [[] for _ in streams]
        self._open = [True] * len(streams)
        self._steps = self.tokens = 0
        self._first = self.seconds = 0.0

    def all_of(self, made: Iterable[Tensor]) -> bool:
        """Print what is made, until it ends or Ctrl-C is pressed; gives whether it was."""
        interrupted, begun = False, time.perf_counter()
        self._head(0)
        try:
            for row in made:
                self.seconds = time.perf_counter() - begun
                self._first = self._first or self.seconds
                self._add(row.tolist())
        except KeyboardInterrupt:
            interrupted = True
        self.seconds = time.perf_counter() - begun
        self._finish()
        return interrupted

    def speeds(self, prompt: int) -> Iterator[str]:
        """Of what was made after the first token, and how long that one took after a prompt of so many."""
        if self._steps > 1:
            made = self.tokens - len(self._streams)  # samples that have ended make no more
            yield f"{made / (self.seconds - self._first):,.0f} tokens/s after the first"
        if self._steps:
            yield f"prompt of {_count(prompt)} and first token in {self._first:.2f} s"

    def _add(self, row: Sequence[int]) -> None:
        self._steps += 1
        for n, token in enumerate(row):
            if self._open[n]:
                self.tokens += 1
                self._open[n] = token != self._end
                self._tell(n, self._streams[n].add(token))

    def _finish(self) -> None:
        """What is left of the first sample, and the others."""
        for n, stream in enumerate(self._streams):
            self._tell(n, stream.finish())
            if n:
                self._head(n)
                _show("".join(self._texts[n]))
            _show("\n")

    def _tell(self, n: int, text: str) -> None:
        self._texts[n].append(text)
        if n == 0 and text:
            _show(text)

    def _head(self, n: int) -> None:
        if len(self._streams) > 1:
            _show(f"--- sample {n + 1} of {len(self._streams)}\n")


def _show(text: str) -> None:
    """Print at once; a terminal gets no control characters, which a model may write like any others."""
    if sys.stdout.isatty():
        text = "".join(c if c.isprintable() or c in "\n\t" else UNKNOWN for c in text)
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "replace").decode(encoding), end="", flush=True)


def _count(tokens: int) -> str:
    return f"{tokens:,} token{'' if tokens == 1 else 's'}"


def _size(count: float) -> str:
    """Bytes in the unit that suits them.

    >>> _size(12288), _size(3.5 * 2**30), _size(2.0**90)
    ('12 KiB', '3.5 GiB', '1.13e+15 TiB')
    """
    unit = max(n for n in range(5) if n == 0 or count >= 1024**n)
    return f"{count / 1024**unit:.3g} {('bytes', 'KiB', 'MiB', 'GiB', 'TiB')[unit]}"


def _device(name: str) -> str:
    if name == "cuda" and not torch.cuda.is_available():
        raise RequestError("--device cuda: torch sees no GPU here; use --device cpu")
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


def _text(prompt: str) -> str:
    try:
        if prompt != "-":
            prompt.encode()
            return prompt
        if sys.stdin is None:
            raise RequestError("--prompt -: stdin is closed; give the text itself, or a file with <")
        source: Any = getattr(sys.stdin, "buffer", sys.stdin)
        text = source.read()
        return text.decode() if isinstance(text, bytes) else text
    except UnicodeError as error:
        raise RequestError("--prompt: the text is not UTF-8") from error
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise RequestError(f"--prompt -: stdin cannot be read: {reason}") from error


def _require_memory(model: LanguageModel, samples: int, capacity: int, device: str) -> None:
    """The states of all samples, or their caches for all tokens, have to fit beside the model."""
    width = model.embedding.weight.element_size()
    mixers = [block.token_mixer for block in model.layers]
    sizes = [mixer.state_size(capacity) * (4 if mixer.constant_state else width) for mixer in mixers]
    needed, free = samples * (sum(sizes) + SAMPLER_BYTES + 4 * model.vocab_size), available(device)
    if needed > free:
        raise RequestError(
            f"--samples {shortened(samples)} of {shortened(capacity)} tokens, prompt included, need "
            f"{_size(needed)} of memory, and {_size(free)} are free; ask for less"
        )


def _require_positions(model: LanguageModel, prompt: int, tokens: int) -> None:
    """A model of learned positions has a last one."""
    limit = model.position.limit
    if limit is None or prompt + tokens - 1 <= limit:
        return
    left = limit - prompt + 1
    cure = f"ask for --tokens {left} at most" if left > 0 else "give a shorter prompt"
    raise RequestError(
        f"--tokens {tokens} after a prompt of {prompt} tokens: the model's learned positions end at {limit}; "
        f"{cure}"
    )
