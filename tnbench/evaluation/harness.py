"""lm-eval's view of our models: importing this module puts `tnbench` among its models."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tnbench.console import console
from tnbench.data import Tokenizer
from tnbench.errors import RequestError
from tnbench.evaluation.continuation import TOKENS, Continued, continuations
from tnbench.evaluation.generation import inference_model
from tnbench.evaluation.loading import load_run
from tnbench.evaluation.scoring import Request, Scorer
from tnbench.model import LanguageModel


class HarnessModel(TemplateLM):
    """A model of ours, for lm-eval.

    Every request is answered as a model would that reads it alone; `scoring` says how less is computed.

    Args:
        run: a run id, run folder or manifest, as for `load_run`; or None with `model` and `tokenizer`.
        results: where run ids are looked for.
        device: `cpu`, or a GPU where there is one (`cuda`, None).
        precision: `fp32`, `bf16` or `fp16`; None for bf16 on a GPU and fp32 elsewhere.
        max_length: tokens that the model is given at a time; None for the context that it was trained with.
        batch_tokens: tokens of a pass, at most.

    Raises:
        RequestError: the run cannot be loaded.
    """

    def __init__(
        self,
        run: str | None = None,
        *,
        model: LanguageModel | None = None,
        tokenizer: Tokenizer | None = None,
        results: str | Path = "results",
        device: str | None = None,
        precision: str | None = None,
        max_length: int | None = None,
        batch_tokens: int | None = None,
        quiet: bool = False,
        batch_size: Any = None,
        max_batch_size: Any = None,
    ) -> None:
        super().__init__()
        # lm-eval's command line asks for cuda:0 wherever it runs.
        place = device or "cuda"
        if place.startswith("cuda") and not torch.cuda.is_available():
            place = "cpu"
        if run is not None:
            loaded = load_run(str(run), Path(results), place)
            model, tokenizer = loaded.model, loaded.tokenizer
            max_length = max_length or int(loaded.manifest["config"]["data"]["context"])
        if model is None or tokenizer is None:
            raise RequestError("a model is needed: run=RUN, a run id, run folder or manifest.json")
        self.model = inference_model(model, precision or ("bf16" if place.startswith("cuda") else "fp32"))  # type: ignore[arg-type]
        limit = model.position.limit
        if limit is not None and max_length is not None and max_length > limit:
            raise RequestError(f"--max-length {max_length}: the model's learned positions end at {limit}")
        self.coder, self.max_length, self.quiet = tokenizer, max_length, quiet
        self._device = torch.device(place)
        self.batch_tokens = batch_tokens

    @property
    def eot_token_id(self) -> int:
        return self.coder.end_of_text

    @property
    def device(self) -> torch.device:
        return self._device

    @property
    def tokenizer_name(self) -> str:
        return f"{self.coder.name} {self.coder.hash}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Ids of a text; there are no special tokens to add."""
        return self.coder.encode(string).tolist()

    def tok_decode(self, tokens: Iterable[int]) -> str:
        return self.coder.decode(tokens)

    def loses(self, context: str, following: str | int) -> bool:
        """Whether a context is too long to be read whole before a continuation, or before so many tokens."""
        if self.max_length is None:
            return False
        tokens = following if isinstance(following, int) else len(self.tok_encode(following)) - 1
        return len(self.tok_encode(context)) + tokens > self.max_length

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[tuple[str, str], list[int], list[int]]],
        disable_tqdm: bool = False,
        **_: Any,
    ) -> list[tuple[float, bool]]:
        """(log p, greedy) of each continuation; what is computed is handed to the cache at once."""
        # A continuation that merges with its context into one token leaves none: it is certain.
        asked = [n for n, (_, _, continuation) in enumerate(requests) if continuation]
        found: list[tuple[float, bool]] = [(0.0, True)] * len(requests)
        pairs = [Request(tuple(requests[n][1]), tuple(requests[n][2])) for n in asked]
        scorer = Scorer(self.model, batch_tokens=self.batch_tokens, max_length=self.max_length)
        for place, score in self._shown(scorer.scores(pairs), len(pairs), "scoring"):
            index = asked[place]
            found[index] = (score.nats, score.greedy)
            if requests[index][0] is not None:
                self.cache_hook.add_partial("loglikelihood", requests[index][0], found[index])
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """log p of whole texts, in windows of `max_length` that do not overlap, as lm-eval's models do."""
        windows: list[Request] = []
        owners: list[int] = []
        for index, request in enumerate(requests):
            tokens = self.tok_encode(request.args[0])
            length = self.max_length or max(1, len(tokens))
            for pair in get_rolling_token_windows(tokens, self.prefix_token_id, length, 1):
                context, continuation = make_disjoint_window(pair)
                windows.append(Request(tuple(context), tuple(continuation)))
                owners.append(index)
        sums, left = [0.0] * len(requests), [0] * len(requests)
        for owner in owners:
            left[owner] += 1
        scorer = Scorer(self.model, batch_tokens=self.batch_tokens, max_length=self.max_length)
        for place, score in self._shown(scorer.scores(windows), len(windows), "scoring windows"):
            owner = owners[place]
            sums[owner] += score.nats
            left[owner] -= 1
            if left[owner] == 0:
                self.cache_hook.add_partial("loglikelihood_rolling", requests[owner].args, sums[owner])
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Texts that follow on contexts, up to the first of `until` (left out) or the end of text."""
        asked = [self._asked(*request.args) for request in requests]
        found = [""] * len(requests)
        made = continuations(
            self.model, self.coder, asked, max_length=self.max_length, batch_tokens=self.batch_tokens
        )
        for index, text in self._shown(made, len(requests), "generating"):
            found[index] = text
            self.cache_hook.add_partial("generate_until", requests[index].args, text)
        return found

    def _asked(self, context: str, options: dict[str, Any]) -> Continued:
        known = {"until", "max_gen_toks", "do_sample", "temperature", "top_k", "top_p", "seed"}
        strange = sorted(set(options) - known)
        if strange:
            raise RequestError(f"generation_kwargs {strange[0]}: known are {', '.join(sorted(known))}")
        until = options.get("until") or []
        drawn = bool(options.get("do_sample", False))
        return Continued(
            tuple(self.tok_encode(context)) or (self.eot_token_id,),
            until=tuple([until] if isinstance(until, str) else until),
            tokens=int(options.get("max_gen_toks", TOKENS)),
            temperature=float(options.get("temperature", 1.0)) if drawn else 0.0,
            top_k=options.get("top_k") if drawn else None,
            top_p=options.get("top_p") if drawn else None,
            seed=int(options.get("seed", 0)),
        )

    def _shown(self, items: Iterator[Any], total: int, words: str) -> Iterator[Any]:
        """The items, with a progress bar where somebody looks."""
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        place = console()
        hidden = self.quiet or total < 2 or not place.is_terminal
        with Progress(*columns, console=place, transient=True, disable=hidden) as progress:
            task = progress.add_task(words, total=total)
            for item in items:
                progress.advance(task)
                yield item


register_model("tnbench")(HarnessModel)
