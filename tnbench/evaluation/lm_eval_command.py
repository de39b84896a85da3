"""lm-eval's own command line, to which our models are known:

python -m tnbench.evaluation.lm_eval_command --model tnbench --model_args run=RUN --tasks …
"""

from __future__ import annotations

from lm_eval.__main__ import cli_evaluate

from tnbench.evaluation import harness


def main() -> None:
    """Run it; `harness` has registered the model."""
    assert harness.HarnessModel
    cli_evaluate()


if __name__ == "__main__":
    main()
