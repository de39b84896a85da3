"""The command line: each command, each kind of wrong request, and what README shows."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tnbench import cli
from tnbench.version import VERSION

pytestmark = pytest.mark.usefixtures("settled_process")

ROOT = Path(__file__).resolve().parent.parent
TEXT = "".join(f"Sentence {n} of a small corpus: {n * n} is the square of {n}.\n" for n in range(4000))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of its own, with a small corpus in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path


def tnbench(*arguments: str) -> int:
    """Run the command line in this process and give its exit status."""
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    assert isinstance(ended.value.code, int)
    return ended.value.code


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a wrong request is refused; nothing may have been written."""
    before = sorted(Path().rglob("*"))
    assert tnbench(*arguments) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert err.count("\n") == 1, err
    assert err.startswith("tnbench: ")
    assert sorted(path for path in Path().rglob("*") if "results" not in path.parts) == before
    assert not list(Path().glob("results/**/manifest.json"))
    return err.removeprefix("tnbench: ").strip()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("--version") == 0
    assert capsys.readouterr().out == f"tnbench {VERSION}\n"


def test_help_imports_nothing_heavy() -> None:
    """`tnbench --help` has to answer at once, so it must not import what commands need."""
    code = (
        "import sys; from tnbench import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'matplotlib', 'scipy', 'datasets', 'transformers'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ablate" in done.stdout
    assert done.stderr.strip() == "[]"


@pytest.mark.parametrize(
    "command",
    [
        "list",
        "ablate",
        "train",
        "generate",
        "eval",
        "compare",
        "profile-kernels",
        "profile-model",
        "export",
        "data",
    ],
)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench(command, "--help") == 0
    assert "Usage" in capsys.readouterr().out


def test_list_shows_every_kind(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("list", "--json") == 0
    listing = json.loads(capsys.readouterr().out)
    assert {"gla", "softmax", "retention"} <= {row["name"] for row in listing["mixer"]}
    assert {"mix", "lrpe", "ape", "rope", "none"} <= {row["name"] for row in listing["position"]}
    assert {"quickstart", "smoke", "decay"} <= {row["name"] for row in listing["suite"]}
    operators = {row["name"]: row["implementations"] for row in listing["operator"]}
    assert {"linear_attention", "norm", "norm_gate", "add_norm", "lrpe", "decode_step"} == operators.keys()
    assert {"triton", "chunked", "fla-chunk", "softmax-cudnn"} <= set(operators["linear_attention"])
    assert all(row["summary"] for rows in listing.values() for row in rows)
    assert tnbench("list", "decays") == 0
    shown = capsys.readouterr().out
    assert "official" in shown
    assert "swish" not in shown


def test_data_info_and_prepare(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("data", "prepare", "text.txt", "--json") == 0
    prepared = json.loads(capsys.readouterr().out)
    assert set(prepared["splits"]) == {"train", "tune", "report"}
    assert tnbench("data", "info", "text.txt", "--json") == 0
    assert json.loads(capsys.readouterr().out) == prepared
    assert tnbench("data", "info", "text.txt", "--tokenizer", "bpe-300") == 0
    assert "bpe-300" in capsys.readouterr().out


SMALL = [
    "--set",
    "model.size=0.1m",
    "--set",
    "data.corpus=text.txt",
    "--set",
    "data.context=32",
    "--device",
    "cpu",
]
SHORT = [*SMALL, "--set", "training.steps=6", "--set", "training.batch_tokens=128"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results folder of a run on text.txt."""
    there = tmp_path_factory.mktemp("trained")
    (there / "text.txt").write_text(TEXT)
    with contextlib.chdir(there):
        assert tnbench("train", *SHORT) == 0
    return there / "results"


def test_train_writes_records_and_does_not_repeat_itself(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("train", *SHORT) == 0
    assert "bits per byte" in capsys.readouterr().out
    (manifest,) = Path("results/train/runs").glob("*/manifest.json")
    record = json.loads(manifest.read_text())
    assert record["outcome"] == "finished"
    assert record["config"]["data"]["corpus"] == "text.txt"
    assert (manifest.parent / "checkpoint" / "model.safetensors").stat().st_size > 0
    written = manifest.read_bytes()
    assert tnbench("train", *SHORT) == 0
    assert manifest.read_bytes() == written
    assert tnbench("train", *SHORT, "--seed", "1", "--keep", "none", "--results", "other") == 0
    other = next(Path("other/train/runs").glob("*/manifest.json")).parent
    assert not (other / "checkpoint" / "model.safetensors").exists()


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("--debug", "ablate", "quickstrat") == 2
    assert "Traceback" in capsys.readouterr().err
    assert tnbench("ablate", "quickstrat", "--debug") == 2
    assert "Traceback" in capsys.readouterr().err


WRONG = [
    (["abalte", "quickstart"], "ablate"),
    (["ablate"], "SUITE"),
    (["ablate", "quickstrat"], "did you mean quickstart?"),
    (["ablate", "absent.yaml"], "no suite file absent.yaml"),
    (["ablate", "quickstart", "--seed", "3"], "--seeds"),
    (["ablate", "quickstart", "--seeds", "0"], "--seeds"),
    (["ablate", "quickstart", "--workers", "none"], "--workers"),
    (["ablate", "quickstart", "--plan", "--status"], "exclude each other"),
    (["ablate", "quickstart", "--report"], "tnbench ablate quickstart"),
    (["ablate", "quickstart", "--set", "model.decya=none"], "did you mean decay?"),
    (["ablate", "quickstart", "--set", "modle.decay=none"], "model"),
    (["ablate", "quickstart", "--set", "decay=none"], "did you mean model.decay?"),
    (["ablate", "quickstart", "--set", "model.decay.temprature=no"], "did you mean temperature?"),
    (["ablate", "quickstart", "--set", "model.decay=offical"], "did you mean official?"),
    (["ablate", "quickstart", "--set", "model.preset=transfomer"], "did you mean transformer?"),
    (["ablate", "quickstart", "--set", "model.size=0.2m"], "0.1m"),
    (["ablate", "quickstart", "--set", "model.implementation=chunky"], "chunked"),
    (
        ["ablate", "quickstart", "--set", "model.position=lrpe-d"],
        "model.position=lrpe and model.decay=official",
    ),
    (["ablate", "quickstart", "--set", "model.heads=3"], "does not divide model.width = 64"),
    (["ablate", "quickstart", "--set", "model.layers=0"], "model.layers"),
    (["ablate", "quickstart", "--set", "training.learning_rate=fast"], "training.learning_rate"),
    (["ablate", "quickstart", "--set", "training.batch_tokens=1000"], "no multiple of data.context"),
    (["ablate", "quickstart", "--set", "nothing"], "key=value"),
    (["ablate", "quickstart", "--set", "model.size=1m", "--set", "model.size=3m"], "given twice"),
    (["ablate", "quickstart", "--set", "data.corpus=absent.txt"], "absent.txt"),
    (["ablate", "quickstart", "--set", "data.corpus=state-of-teh-union"], "did you mean state-of-the-union?"),
    (["ablate", "quickstart", "--set", "data.tokenizer=byte"], "did you mean bytes?"),
    (["ablate", "quickstart", "--results", "text.txt"], "--results"),
    (["train", "--set", "model.mixer=softmax"], "model.decay=none, model.feature_map=none"),
    (["train", "--set", "model.mixer=linear-attention", "--set", "model.position=rope"], "denominator"),
    (["train", "--set", "training.steps=5", "--set", "training.tokens=5"], "exactly one"),
    (["data", "prepare", "absent.txt"], "absent.txt"),
    (["list", "mixr"], "did you mean mixer?"),
]


@pytest.mark.parametrize(("arguments", "says"), WRONG, ids=[" ".join(arguments) for arguments, _ in WRONG])
def test_wrong_requests_end_in_one_line(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert says in refused(capsys, *arguments)


HEAD = "base: {model.size: 0.1m, data.corpus: text.txt, data.context: 32, training.steps: 4}\n"
WRONG_SUITES = [
    ("base: {model.size: 0.1m}\nvariants:\n  a: {}\n  b: {model.gate: [}\n", "line 4: not valid YAML"),
    (HEAD + "variants:\n  a: {}\n  a: {model.gate: false}\n", "line 4: 'a' is given twice, first in line 3"),
    (
        HEAD + "variants:\n  a: {}\n  b: {model.gate: true}\n",
        "line 4: variants.b: the same configuration as variant 'a'",
    ),
    (
        HEAD + "variants:\n  a: {}\n  b: {model.gat: true}\n",
        "line 4: variants.b: unknown key model.gat, did you mean gate?",
    ),
    (HEAD + "variants:\n  a: {}\n  b: {model.decay: {name: fixed, valeu: 1}}\n", "did you mean value?"),
    (HEAD + "variants:\n  a: {}\n  b: {model.decay: {name: fixed, value: [0.9]}}\n", "1 values for 4 heads"),
    (HEAD + "variants:\n  a: {}\n  b: {model.decay: {name: fixed, value: 2}}\n", "line 4"),
    (
        HEAD + "variants:\n  a: {}\n  b: {model.mixer: softmax}\n",
        "line 4: variants.b: model.decay = official",
    ),
    (HEAD + "variants:\n  no: {}\n", "line 3: the key no reads as False; write it in quotes"),
    (HEAD + "varients:\n  a: {}\n", "unknown key varients, did you mean variants?"),
    (HEAD + "variants: {}\n", "variants"),
    (HEAD + "variants: [a, b]\n", "line 2"),
    (HEAD, "variants is missing"),
    ("variants: {a: {}}\n", "base is missing"),
    (HEAD + "variants: {a: {}}\nseeds: [0, 0]\n", "line 3: seeds: a seed is listed twice"),
    (HEAD + "variants: {a: {}}\nseeds: [-1]\n", "line 3"),
    (HEAD + "variants: {a: {}}\nseeds: three\n", "line 3: seeds: 'three': expected how many"),
    (HEAD + "variants: {a: {}}\nseeds: 0\n", "line 3: seeds: 0: expected how many"),
    (HEAD + "variants: {a: {}, b: gla}\n", "b = 'gla': expected a diff"),
    (HEAD + "variants: {a: {}, ' ': {model.gate: false}}\n", "no name for a variant"),
    (
        HEAD + "variants: {a: {}, b: {training.data_seed: 4}}\n",
        "training.data_seed is set by the suite's seeds",
    ),
    (HEAD + "variants: {a: {}, b: {training.device: cuda}}\n", "different devices"),
    (
        HEAD + "variants: {a: {}, b: {model.preset: gpt2, model.implementation: original}}\n",
        "linear attention",
    ),
    (HEAD + "variants: {a: {}}\nanalysis: {metric: bpb}\n", "val_bits_per_byte"),
    (HEAD + "variants: {a: {}}\nanalysis: {alpha: 2}\n", "line 3: analysis.alpha = 2"),
    (HEAD.replace("text.txt", "short.txt") + "variants: {a: {}}\n", "short.txt"),
    (HEAD.replace("text.txt", "empty.txt") + "variants: {a: {}}\n", "empty.txt is empty"),
    (HEAD.replace("text.txt", "broken.jsonl.gz") + "variants: {a: {}}\n", "broken.jsonl.gz"),
    (HEAD.replace("context: 32", "context: 100000") + "variants: {a: {}}\n", "line 1: base: "),
    ("- a\n", "a suite is a mapping"),
    ("", "a suite is a mapping"),
]


@pytest.mark.parametrize(("content", "says"), WRONG_SUITES, ids=[says for _, says in WRONG_SUITES])
def test_wrong_suites_end_in_one_line(
    content: str, says: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mine.yaml").write_text(content)
    (folder / "short.txt").write_text("short")
    (folder / "empty.txt").write_text("")
    (folder / "broken.jsonl.gz").write_bytes(b"no gzip")
    assert says in refused(capsys, "ablate", "mine.yaml")


def test_a_folder_without_rights_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """/proc takes no folders, not even root's."""
    assert "cannot write results to /proc/none" in refused(
        capsys, "ablate", "smoke", "--results", "/proc/none"
    )


def test_names_are_shown_as_they_are(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Square brackets are no markup."""
    monkeypatch.setenv("COLUMNS", "200")
    (folder / "mine.yaml").write_text(
        HEAD + "variants: {a: {}, '[/x]': {model.mixer: [diag-attention, gla]}}\n"
    )
    for mode in ("--status", "--plan"):
        assert tnbench("ablate", "mine.yaml", "--device", "cpu", mode) == 0
        said = capsys.readouterr().out
        assert "[/x]" in said
    assert "model.mixer = [diag-attention, gla]" in " ".join(said.split())


def test_ctrl_c_before_anything_was_run_says_so() -> None:
    words = [sys.executable, "-m", "tnbench.cli", "ablate", "quickstart", "--plan"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60  # the command is under way once it imports what it needs
    while b"torch" not in Path(f"/proc/{process.pid}/maps").read_bytes() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert err.strip() == "tnbench: interrupted before anything was run"


def test_a_reader_that_goes_away_is_no_error() -> None:
    words = f"{shlex.quote(sys.executable)} -m tnbench.cli list | head -1; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", words], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0"
    assert not done.stderr


def readme_commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("tnbench ")]


def test_readme_shows_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert "pip install -e . && tnbench ablate quickstart" in text
    assert 'pip install -e ".[dev]" && pytest' in text
    assert len(readme_commands()) >= 10


@pytest.mark.parametrize("command", readme_commands())
def test_readme_commands_are_right(
    command: str,
    trained: Path,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command is parsed, and its request checked; what would train for long is planned or cut short."""
    monkeypatch.setattr("tnbench.ablation.plan.seconds_per_run", lambda suite, variant: 1.0)
    arguments = shlex.split(command)[1:]
    if arguments[0] == "ablate" and not {"--plan", "--status", "--report"} & set(arguments):
        arguments.append("--status")
    if arguments[0] == "profile-kernels":
        arguments += [] if {"--plan", "--report"} & set(arguments) else ["--plan"]
    if arguments[0] == "profile-model":
        arguments += [] if {"--plan", "--report", "--fit"} & set(arguments) else ["--plan"]
    if arguments[0] in ("generate", "eval", "export"):  # a run of this code, in place of RUN
        shutil.copytree(trained, "results")
        arguments[1] = next(Path("results/train/runs").iterdir()).name
    if arguments[0] == "eval" and "--by-position" not in arguments:
        arguments += ["--limit", "4"]
    if arguments[0] == "train":
        arguments = [re.sub(r"training\.tokens=.*", "training.tokens=8192", word) for word in arguments]
        arguments += ["--set", "data.corpus=text.txt"] if "--from" not in arguments else []
    if arguments[:2] == ["data", "prepare"]:
        (folder / arguments[2]).write_text((ROOT / arguments[2]).read_text())
    if arguments[0] == "compare" or "--check" in arguments:
        monkeypatch.chdir(ROOT)
    elif arguments[0] == "figures":
        arguments += ["scale", "--records", str(ROOT / "results" / "reference"), "--out", "figures"]
    if "--from" in arguments:  # a shorter original than the one of README
        (original,) = trained.glob("train/runs/*/manifest.json")
        arguments[arguments.index("--from") + 1] = str(original)
    if "--plan" in arguments and arguments[0] == "ablate":
        arguments += ["--set", "model.size=0.1m"] if "model.size" not in command else []
    if "--report" in arguments:
        assert "no record" in refused(capsys, *arguments)
    elif "--check" in arguments:  # records may be stale while code is being changed
        assert tnbench(*arguments) in (0, 1)
    else:
        assert tnbench(*arguments) == 0


def test_readme_suite_is_the_shipped_one() -> None:
    import yaml

    shown = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    shipped = yaml.safe_load((ROOT / "ablations" / "quickstart.yaml").read_text())
    assert yaml.safe_load(shown) == {key: value for key, value in shipped.items() if key != "fixed"}


def test_readme_numbers_are_those_of_the_committed_records() -> None:
    text = " ".join(re.sub(r"<!--.*?-->", "", (ROOT / "README.md").read_text()).split())
    speed = json.loads((ROOT / "results/reference/models/training-speed-cpu.json").read_text())
    low, high = speed["ratio_low"], speed["ratio_high"]
    assert f"{speed['ratio']:.2f} times as many tokens per second [{low:.2f}, {high:.2f}]" in text
    assert f"over {speed['ratio_rounds']} rounds" in text
    for suite, named in {"quickstart": 3, "noise-floor": 3, "architecture": 1}.items():
        table = (ROOT / f"results/reference/{suite}/table.md").read_text().replace("\\", "")
        differences = re.findall(r"\| ([+−][0-9.]+ \[[^]]*\]) \|", table)
        assert sum(difference in text for difference in differences) == named


def test_corpora_of_examples_are_described(capsys: pytest.CaptureFixture[str]) -> None:
    assert tnbench("data", "info", "needle") == 0
    assert "answer" in capsys.readouterr().out
