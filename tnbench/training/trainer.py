"""A run in progress.

After the weights are drawn, nothing random happens: batches are a function of the seed and the step, and no
component draws numbers in training. So weights, optimizer state and the step are all that a resume needs,
and a resumed run equals an uninterrupted one bit for bit on CPU. That the random generators have not moved
is asserted with every checkpoint.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from tnbench.config import RunConfig
from tnbench.data import ExampleData, ExampleSet, TokenData
from tnbench.model import LanguageModel
from tnbench.records import MetricsLog, RunFolder, remove_unfinished
from tnbench.training import checkpoint, compilation
from tnbench.training.environment import StopRequest
from tnbench.training.evaluate import evaluate
from tnbench.training.evaluate_examples import evaluate_examples
from tnbench.training.figures import Figures, InFlight
from tnbench.training.losses import LARGEST
from tnbench.training.manifest import Manifest
from tnbench.training.memory import PeakMemory
from tnbench.training.optimizer import adamw
from tnbench.training.schedule import learning_rate
from tnbench.training.state import State
from tnbench.training.step import loss_scale, objective, optimizer_step

POINTS = 200
"""The training curve has about 100 to 200 points."""
CURVE_BYTES, FINAL_BYTES = 64 << 10, 4 << 20
"""At most so much text is read for a point of the validation curve, and for the figures at the end."""


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    step: int
    """Optimizer steps done."""
    steps: int
    """Optimizer steps in all."""
    loss: float
    """Training loss of the last step, in nats per token; NaN before the first."""
    tokens_per_second: float
    """Of the last steps; NaN before the first."""
    phase: Literal["training", "evaluating"]
    seconds_left: float
    """Estimated from the last steps and the evaluations so far; NaN before the first step."""


class Stopped(Exception):
    """The run was asked to stop; the state is that of a complete step, and has been saved."""


class Displaced(Exception):
    """Another process has taken the run over; this one writes nothing more."""


class Diverged(Exception):
    """The run's numbers have failed; the message says how."""


class Trainer:
    """Builds the model, or takes it up from the run's checkpoint, and trains it to the end.

    Where a GPU computes, the host reads the figures of a step after it has launched `lag` more, so that the
    GPU always has work. A step counts (in `state`, records, progress) once its figures are read; evaluations
    and checkpoints read all of them first.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: RunFolder,
        data: TokenData,
        *,
        manifest: Manifest,
        device: torch.device,
        stopping: StopRequest,
        progress: Callable[[Progress], None] | None,
        mine: Callable[[], bool],
        micro_sequences: int | None = None,
        lag: int | None = None,
    ) -> None:
        self.config, self.folder, self.data, self.manifest = config, folder, data, manifest
        self.device, self.stopping, self.progress, self.mine = device, stopping, progress, mine
        training, self.context = config.training, config.data.context
        self.steps = training.total_steps
        self.sequences = training.batch_tokens // self.context
        points = training.evaluations
        self.curve = {max(1, round(self.steps * point / points)) for point in range(1, points + 1)}
        self.interval = math.ceil(self.steps / POINTS)

        import torch._dynamo  # optimizers import it at first use; its memory is not the run's

        self.memory = PeakMemory(device)
        torch.manual_seed(training.init_seed)
        self.model = LanguageModel(config.model, data.vocab_size, self.context).to(device)
        self.model.activation_checkpointing = training.activation_checkpointing
        self.model.train()
        if training.compile or device.type == "cuda":  # on a GPU the loss has a compiled part of its own
            compilation.begin(config, data.vocab_size)
        self.loss_of = objective(self.model, training, examples=isinstance(data, ExampleData))
        self.optimizer = adamw(self.model, training)
        self.scaler = loss_scale(training)
        manifest.describe_model(self.model, self.context)
        self.random = self._random_state()

        self.state, text = self._resume()
        self.metrics = MetricsLog(folder.metrics, text)
        self.micro_sequences = self._micro_batch(micro_sequences)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()
        self.launched, self.in_flight = self.state.step, InFlight()
        self.lag = int(device.type == "cuda") if lag is None else lag
        self.loss = math.nan
        self.recent: deque[float] = deque(maxlen=50)
        self.unrecorded: list[float] = []

    def complete(self) -> None:
        """Train to the last step and measure the figures that are reported.

        Raises:
            Stopped: as was asked for; a checkpoint has been written.
            Displaced: another process has taken the run over.
            Diverged: the loss or the gradient norm has failed.
        """
        try:
            self._evaluate_curve()  # a run may have been stopped within an evaluation
            batch = self._batch()
            while self.launched < self.steps:
                self._save_if_due()
                batch = self._step(batch)
                self._tell("training")
                self._evaluate_curve()
            self._evaluate("report", FINAL_BYTES)
        except Stopped:
            self._save()
            raise
        epochs = self.data.epochs(self.steps, self.sequences, self.context)
        self._write("epochs", epochs, "epochs")
        assert self._random_state() == self.random, "a component drew random numbers in training"

    def finish(self, keep_weights: bool) -> None:
        """Bring the final weights, then the metrics to disk."""
        self._check_mine()
        if keep_weights:
            record = {"run_id": self.folder.id, "step": self.state.step}
            checkpoint.save_weights(self.folder.weights, self.model, record)
        self.metrics.close()

    def smaller_micro_batch(self) -> int | None:
        """Sequences of the next smaller micro-batch, at most half and a divisor of the step's; None at 1."""
        half = range(self.micro_sequences // 2, 0, -1)
        return next((size for size in half if self.sequences % size == 0), None)

    def _resume(self) -> tuple[State, bytes]:
        """Take up the checkpoint, if one holds; gives the state and the metrics up to it."""
        path = self.folder.resume
        for folder in (self.folder.path, path.parent):
            remove_unfinished(folder)
        if not path.exists():
            return State(), b""
        try:
            record, text = checkpoint.load_training(path, self.model, self.optimizer, self.folder.id)
        except checkpoint.CheckpointError as error:
            self.manifest.note(
                f"attempt {self.manifest.values['attempts']} started from the beginning: {error}"
            )
            self.manifest.write()
            return State(), b""
        there = self.folder.metrics
        if not there.exists() or not there.read_bytes().startswith(text):
            self.manifest.note(f"{there.name} was damaged and has been restored from the checkpoint")
        if self.scaler:
            self.scaler.load_state_dict(record["loss_scale"])
        return State.from_json(record["state"]), text

    def _micro_batch(self, sequences: int | None) -> int:
        """Sequences per micro-batch from here on: as asked for, else as before, else as configured."""
        training, sizes = self.config.training, self.state.micro_batches
        configured = training.micro_batch_tokens or training.batch_tokens
        tokens = sequences * self.context if sequences else sizes[-1][1] if sizes else configured
        if not sizes or sizes[-1][1] != tokens:
            sizes[:] = [size for size in sizes if size[0] < self.state.step] + [[self.state.step, tokens]]
        return tokens // self.context

    def _batch(self) -> Tensor:
        """The windows or examples of the next step, as `optimizer_step` takes them, on their way there."""
        tokens = self.data.batch(self.config.training.data_seed, self.launched, self.sequences, self.context)
        if self.device.type == "cuda":
            return tokens.pin_memory().to(self.device, non_blocking=True)
        return tokens

    def _step(self, batch: Tensor) -> Tensor:
        """Launch one optimizer step, and account for those that are done; gives the batch of the next."""
        training, started = self.config.training, time.perf_counter()
        rate = learning_rate(training, self.launched)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        total, norm = optimizer_step(
            self.model,
            self.optimizer,
            batch,
            training,
            loss=self.loss_of,
            micro_sequences=self.micro_sequences,
            scaler=self.scaler,
        )
        self.in_flight.add(total, norm, rate, started)
        self.launched += 1
        batch = self._batch() if self.launched < self.steps else batch  # while the GPU works
        ahead = self.launched < self.steps and self.launched not in self.curve
        self._catch_up(self.lag if ahead else 0)
        return batch

    def _catch_up(self, behind: int = 0) -> None:
        """Account for the steps that were launched, in their order, but for the last `behind`."""
        while len(self.in_flight) > behind:
            figures = self.in_flight.read()
            self.state.step += 1
            self._account(figures)

    def _account(self, figures: Figures) -> None:
        state, self.loss = self.state, figures.loss
        state.training_seconds += figures.seconds
        self.recent.append(figures.seconds)
        self.unrecorded.append(figures.seconds)
        reason = state.watch.reason(
            figures.loss, figures.gradient_norm, self.data.vocab_size, skips=self.scaler is not None
        )
        state.losses.add(figures.loss)
        state.gradient_norms.add(figures.gradient_norm)
        if reason or state.step in (1, self.steps) or state.step % self.interval == 0:
            typical = statistics.median(self.unrecorded)
            self.unrecorded.clear()
            state.peak_memory_bytes = max(state.peak_memory_bytes, self.memory.read())
            self._write("train_loss", figures.loss, "nats")
            self._write("gradient_norm", figures.gradient_norm, "1")
            self._write("learning_rate", figures.learning_rate, "1")
            self._write("step_seconds", typical, "s")
            self._write("tokens_per_second", self.config.training.batch_tokens / typical, "tokens/s")
            self._write("peak_memory_bytes", state.peak_memory_bytes, "bytes")
        if reason:
            raise Diverged(reason)

    def _evaluate_curve(self) -> None:
        if self.state.step in self.curve and self.state.evaluated < self.state.step:
            self._evaluate("tune", CURVE_BYTES)
            self.state.evaluated = self.state.step

    def _evaluate(self, split: str, max_bytes: int) -> None:
        started = time.perf_counter()
        training = self.config.training
        held_out = self.data.evaluation(split, self.context, max_bytes=max_bytes)
        how: dict[str, Any] = {
            "sequences": self._evaluated_together(),
            "device": training.device,
            "precision": training.precision,
            "between": lambda: self._tell("evaluating"),
        }
        if isinstance(held_out, ExampleSet):
            found = evaluate_examples(self.model, held_out, **how)
            measured = list(found.values(by_level=split == "report"))
            text_bytes = 0
        else:
            found = evaluate(self.model, held_out, **how)
            measured, text_bytes = list(found.values()), found.text_bytes
        for name, value, unit in measured:
            self._write(name, value, unit, split)
        self.state.evaluation_seconds += time.perf_counter() - started
        if not math.isfinite(found.nats):
            raise Diverged(f"validation loss is {measured[0][1]}")
        if self.state.step == self.steps:
            self.state.evaluation[split] = {
                "text_bytes": text_bytes,
                "tokens": found.tokens,
                "documents": held_out.documents,
                "values": {name: value for name, value, _ in measured},
            }

    def _evaluated_together(self) -> int:
        """Windows in a forward pass of an evaluation: as in training; on a GPU as their logits have room."""
        if self.device.type == "cpu":
            return self.micro_sequences
        return max(1, min(self.micro_sequences, LARGEST // (self.context * self.data.vocab_size)))

    def _write(self, name: str, value: float, unit: str, split: str = "train") -> None:
        step = self.state.step
        self.metrics.write(
            name, value, unit, step=step, tokens=step * self.config.training.batch_tokens, split=split
        )

    def _tell(self, phase: Literal["training", "evaluating"]) -> None:
        """Report progress, and stop if that is wanted."""
        try:
            if self.progress:
                step = self.state.step
                each = statistics.fmean(self.recent) if self.recent else math.nan
                done = sum(point <= step for point in self.curve)
                evaluations = (len(self.curve) - done) * self.state.evaluation_seconds / max(1, done)
                speed = self.config.training.batch_tokens / each
                left = (self.steps - step) * each + evaluations
                self.progress(Progress(step, self.steps, self.loss, speed, phase, left))
            self._check_mine()
            if self.stopping():
                raise Stopped
        except KeyboardInterrupt as pressed:
            raise Stopped from pressed

    def _save_if_due(self) -> None:
        due = time.monotonic() - self.saved_at >= self.config.training.checkpoint_every
        if due and self.launched > self.saved_step:
            self._save()

    def _save(self) -> None:
        self._catch_up()
        assert self._random_state() == self.random, "a component drew random numbers in training"
        self._check_mine()
        self.state.peak_memory_bytes = max(self.state.peak_memory_bytes, self.memory.read())
        with self.memory.set_aside():
            record = {"run_id": self.folder.id, "state": self.state.to_json()}
            if self.scaler:
                record["loss_scale"] = self.scaler.state_dict()
            self.metrics.flush()
            text = bytes(self.metrics.text)
            checkpoint.save_training(self.folder.resume, self.model, self.optimizer, record, text)
        self.saved_step, self.saved_at = self.state.step, time.monotonic()

    def _check_mine(self) -> None:
        if not self.mine():
            raise Displaced

    def _random_state(self) -> list[bytes]:
        states = [torch.get_rng_state()]
        if self.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.device))
        return [state.numpy().tobytes() for state in states]
