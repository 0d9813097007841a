"""The documents are true: blocks and commands run, numbers come from result files, links lead."""

import importlib.util
import json
import re
import shlex
import sys
from functools import partial
from pathlib import Path

import jax
import pytest
import test_contract
from conftest import batch_of, entry_of
from PIL import Image
from test_report import show_few

from experiments import explore, fitting
from experiments.__main__ import main, parse
from experiments.bench import training
from experiments.evaluation import RESULTS
from experiments.experiment import Experiment, Options, Training
from experiments.registry import EXPERIMENTS
from gen.data import Reading
from gen.estimate import from_json
from gen.models.dequantized import Dequantized

ROOT = Path(__file__).parent.parent
DOCUMENTS = {
    name: (ROOT / f"{name}.md").read_text()
    for name in ("README", "BUILD", "CONTRIBUTING", "CHANGELOG")
}
README, CONTRIBUTING = DOCUMENTS["README"], DOCUMENTS["CONTRIBUTING"]
COMMANDS, PYTHON = (ROOT / "docs" / f"{name}.md" for name in ("commands", "python"))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Return the arguments of every `python -m experiments` of a document."""
    lines = "\n".join(blocks(text, "sh")).splitlines()
    parts = [shlex.split(part, comments=True) for line in lines for part in line.split("&&")]
    return [part[3:] for part in parts if part[:3] == ["python", "-m", "experiments"]]


def files_of(text: str) -> dict[str, str]:
    """Return the files that a document shows, by path: blocks under a line with the path alone."""
    return dict(re.findall(r"^`([\w/.]+)`:\n\n```python\n(.*?)```", text, re.DOTALL | re.MULTILINE))


def results() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_*.json"))}


def test_readme_is_short_and_begins_with_a_picture_and_three_commands():
    assert len(README.splitlines()) <= 140
    assert "](docs/overview.png)" in "".join(README.splitlines()[:10])
    assert "pip install -e ." in blocks(README, "sh")[0]
    assert [command[0] for command in commands(README)] == ["sample", "train", "train"]
    assert "--data" in commands(README)[-1]


def test_the_test_command_is_the_one_that_ci_runs():
    assert re.findall(r"^.*&& pytest$", README, re.MULTILINE) == [
        "pip install -e '.[test]' && pytest"
    ]
    assert "grep -m1 '&& pytest$' README.md" in (ROOT / ".ci/run").read_text()


def test_python_blocks_run_one_after_another(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace = {}
    codes = blocks(README, "python") + blocks(PYTHON.read_text(), "python")
    assert len(codes) == 8
    for code in codes:
        exec(compile(code, "README.md and python.md", "exec"), namespace)


def test_commands_run(tmp_path, monkeypatch, capsys):
    """They run in their order, shortened, in one folder. The flags of trainings on MNIST, of those
    that name their folder, and of `explore`, which takes minutes, are parsed only."""
    monkeypatch.chdir(tmp_path)
    show_few(monkeypatch)
    (tmp_path / "photos").mkdir()
    for i in range(150):
        Image.new("L", (8, 8), i).save(tmp_path / "photos" / f"{i}.png")
    monkeypatch.setattr(fitting, "candidates", lambda *_: [])  # which compiles every model
    monkeypatch.setattr(training, "matmul_gflops", partial(training.matmul_gflops, size=64))
    short = ["--steps", "40", "--report-every", "20", "--no-pictures"]
    shorter = {"train": short, "sweep": short, "bench": ["--seconds", "0.1"]}
    shorter["features"] = ["--no-tune", "--draws", "2"]
    shorter["complete"] = ["--examples", "5", "--occlusion", "lower"]
    shorter["latent"] = ["--examples", "20"]
    ran = set()
    for arguments in commands(README) + commands(COMMANDS.read_text()):
        command, *rest = arguments
        if command == "train" and ("mnist" in rest[0] or "--out" in rest):
            check_training_parses(rest)
            continue
        if command == "explore":
            assert parse(explore.Flags, rest, command, explore.Flags("", Reading())).data == rest[0]
            continue
        assert main([*arguments, *shorter.get(command, [])]) == 0, arguments
        ran.add(command)
    commands_run = {"list", "data", "train", "sweep", "compare", "evaluate", "sample", "export"}
    uses = {"judge", "features", "anomaly", "complete", "latent", "report"}
    assert ran == commands_run | uses | {"bench", "table"}


def check_training_parses(arguments):
    name, *flags = arguments
    given = Training(EXPERIMENTS[name], Options())
    assert parse(Training, flags, f"train {name}", given) != given


def test_every_result_file_is_whole_and_of_a_registered_experiment():
    fields = {"experiment", "data", "estimates", "seeds", "per_seed", "parameters"}
    fields |= {"train_seconds", "device", "command", "commit"}
    assert {"ae_mnist", "vae_mnist", "gan_mnist"} <= results().keys()
    for name, record in results().items():
        assert name in EXPERIMENTS
        assert fields <= record.keys(), name
        assert record["experiment"] == name
        assert record["split"] == "test"
        assert record["step"] == EXPERIMENTS[name].steps or record.get("stopped_early")
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]), "published from a changed checkout"
        assert f"train {name}" in record["command"]
        for estimate in record["estimates"].values():
            assert {"value", "stderr", "kind", "n", "settings"} <= estimate.keys()
        for seed in record["per_seed"]:
            assert record["estimates"].keys() == seed.keys() - {"seed"}


def test_every_row_of_the_results_equals_its_file():
    cells = r"`(\w+)` \| [^|]+ \| `(\w+)` \| ([^|]+) \| ([^|]+) \| ([\d,]+) \| ([\d,]+) \| ([^|]+) "
    rows = re.findall(rf"^\| {cells}\|", README, re.MULTILINE)
    assert len(rows) == 10
    families = {EXPERIMENTS[name].model.family for name, *_ in rows}
    generative = {each.model.family for each in EXPERIMENTS.values()} - {"classifier"}
    assert len(families) == len(generative)
    for name, of, value, kind, parameters, seconds, device in rows:
        record = results()[name]
        estimate = from_json(record["estimates"][of])
        assert f"{value} ({kind}, n = {estimate.n})" == str(estimate)
        assert parameters == f"{record['parameters']:,}"
        assert seconds == f"{record['train_seconds']:,.0f}"
        assert device == record["device"].partition(":")[0]


@pytest.fixture
def contributed(tmp_path, monkeypatch):
    """Return the files of CONTRIBUTING.md by path, with its model importable and registered."""
    files = files_of(CONTRIBUTING)
    source = tmp_path / "ppca.py"
    source.write_text(files["gen/models/ppca.py"])
    spec = importlib.util.spec_from_file_location("gen.models.ppca", source)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gen.models.ppca", module)
    spec.loader.exec_module(module)
    namespace = {}
    exec(compile(files["experiments/registry/linear.py"], "linear.py", "exec"), namespace)
    for name, experiment in namespace["EXPERIMENTS"].items():
        monkeypatch.setitem(EXPERIMENTS, name, experiment)
    return files


def test_the_contributed_model_passes_its_truth_test(contributed):
    namespace = {}
    exec(compile(contributed["tests/test_ppca.py"], "test_ppca.py", "exec"), namespace)
    tests = [value for name, value in namespace.items() if name.startswith("test_")]
    assert len(tests) == 3
    for test in tests:
        test()


def test_the_contributed_model_keeps_the_contract(contributed, digits, monkeypatch):
    wrapped = EXPERIMENTS["ppca_digits"].model
    assert isinstance(wrapped, Dequantized)
    monkeypatch.setitem(EXPERIMENTS, "ppca", Experiment(wrapped.base, data="eight_gaussians"))
    for name in ("ppca", "ppca_digits"):
        entry = entry_of(name, digits)
        state = jax.jit(entry.model.init)(jax.random.key(0))
        setup = test_contract.Setup(entry, state, batch_of(entry, test_contract.BATCH))
        test_contract.test_first_step_and_capabilities(setup)


@pytest.mark.slow
def test_the_contributed_model_trains_from_the_command_line(
    contributed, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    train, evaluate, *_ = commands(CONTRIBUTING)
    assert main([*train, "--steps", "40", "--report-every", "20"]) == 0
    assert main(evaluate) == 0
    record = json.loads(Path(evaluate[1], "evaluation.json").read_text())
    assert record["estimates"]["bits_per_dim"]["kind"] == "upper bound"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_and_paths_exist(name):
    text = DOCUMENTS[name]
    targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    targets += re.findall(r"`((?:gen|experiments|tests)/[\w/.]+)`", text)
    example = {*files_of(CONTRIBUTING), "experiments/results/ppca_digits.json"}
    for target in targets:
        if not target.startswith("http") and target not in example:
            assert (ROOT / target).exists(), target
