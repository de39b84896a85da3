"""`tnbench export`, behind the command line."""

from __future__ import annotations

from pathlib import Path

from tnbench.errors import RequestError
from tnbench.evaluation.loading import load_run, readable
from tnbench.interop import hugging_face
from tnbench.interop.folders import require_free


@readable()
def export_run(name: str, where: str, *, results: Path) -> int:
    """Write a finished run as a Hugging Face folder, and say how it is loaded.

    Args:
        name, results: as in `tnbench.evaluation.loading.load_run`.
        where: the folder, as in `hugging_face.export`.

    Returns:
        The exit status, 0.

    Raises:
        RequestError: there is no such run or it cannot be used, or the folder cannot be written.
    """
    if not where.strip():
        raise RequestError("an empty name: give the folder that is to be written")
    folder = Path(where)
    require_free(folder)
    run = load_run(name, results)
    hugging_face.export(run.model, run.tokenizer, folder, run.manifest)
    parameters = run.model.parameter_counts()["total"]
    print(f"{folder}: {parameters:,} parameters, tokenizer {run.tokenizer.name}; in Python, load it with")
    print(f"AutoModelForCausalLM.from_pretrained({str(folder)!r}, trust_remote_code=True)")
    return 0
