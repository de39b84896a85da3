"""lm-eval's own command line, to which our models are known:

python -m tnbench.evaluation.lm_eval_command --model tnbench --model_args run=RUN --tasks …
"""

from __future__ import annotations

import sys

from lm_eval.__main__ import cli_evaluate

from tnbench.errors import RequestError
from tnbench.evaluation import harness


def main() -> None:
    """Run it; `harness` has registered the model. A wrong request ends in one line and exit status 2."""
    assert harness.HarnessModel
    try:
        cli_evaluate()
    except RequestError as error:
        print(f"tnbench: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
