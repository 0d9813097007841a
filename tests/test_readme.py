"""README.md and BUILD.md say what is true: blocks run, numbers come from run files, links lead."""

import json
import re
import shlex
from pathlib import Path

import pytest

from experiments.__main__ import main
from experiments.evaluation import RESULTS
from experiments.registry import EXPERIMENTS
from gen.estimate import from_json

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BUILD = (ROOT / "BUILD.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[str]:
    """The README's own commands, without the installing and testing around them."""
    lines = "\n".join(blocks("sh")).splitlines()
    parts = [part.split("#")[0].strip() for line in lines for part in line.split("&&")]
    return [part for part in parts if part.startswith("python -m experiments")]


def results() -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*_*.json"))}


@pytest.mark.parametrize("code", blocks("python"))
def test_python_blocks_run(code, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})


def test_commands_run(tmp_path, monkeypatch, capsys):
    """In their order, shortened, in one folder; those on real images are parsed only."""
    monkeypatch.chdir(tmp_path)
    shorter = {"train": ["--steps", "40", "--report-every", "20"], "bench": ["--seconds", "0.1"]}
    ran = 0
    for line in commands():
        arguments = shlex.split(line)[3:]
        if "mnist" in line:
            assert arguments[1] in EXPERIMENTS or "mnist" in arguments[1]
            continue
        assert main([*arguments, *shorter.get(arguments[0], [])]) == 0, line
        ran += 1
    assert ran >= 4


def test_the_two_commands_stand_as_they_are_run():
    assert "pip install -e . && python -m experiments train vae_digits" in README
    assert "pip install -e '.[test]' && pytest" in README


def test_every_result_file_is_whole_and_of_a_registered_experiment():
    fields = {"experiment", "data", "estimates", "seeds", "per_seed", "parameters"}
    fields |= {"train_seconds", "device", "command", "commit"}
    assert {"ae_mnist", "vae_mnist", "gan_mnist"} <= results().keys()
    for name, record in results().items():
        assert name in EXPERIMENTS
        assert fields <= record.keys(), name
        assert record["experiment"] == name
        assert record["split"] == "test"
        assert record["step"] == EXPERIMENTS[name].steps
        assert re.fullmatch("[0-9a-f]{40}", record["commit"]), "published from a changed checkout"
        assert f"train {name}" in record["command"]
        for estimate in record["estimates"].values():
            assert {"value", "stderr", "kind", "n", "settings"} <= estimate.keys()
        for seed in record["per_seed"]:
            assert record["estimates"].keys() == seed.keys() - {"seed"}


def test_every_number_of_the_results_table_comes_from_a_run_file():
    table = README.split("## Results")[1].split("\n## ")[0]
    cells = r"`(\w+)` \| `(\w+)` \| ([^|]+) \| ([^|]+) \| (\d+) \| ([^|]+) \| ([\d,]+) \| ([\d,]+) "
    rows = re.findall(rf"^\| {cells}\|", table, re.MULTILINE)
    assert {row[0] for row in rows} >= {"ae_mnist", "vae_mnist", "gan_mnist"}
    for name, of, value, kind, seeds, seeds_stderr, parameters, seconds in rows:
        record = results()[name]
        estimate = from_json(record["estimates"][of])
        assert f"{value} ({kind}, n = {estimate.n})" == str(estimate)
        assert int(seeds) == len(record["seeds"])
        spread = estimate.settings.get("seeds_stderr")
        assert seeds_stderr == ("–" if spread is None else f"± {spread:.2g}")
        assert int(parameters.replace(",", "")) == record["parameters"]
        assert int(seconds.replace(",", "")) == round(record["train_seconds"])


def test_the_speed_table_comes_from_the_benchmark_file():
    bench = json.loads((RESULTS / "bench.json").read_text())
    rows = re.findall(r"^\| `(\w+)` \| ([\d,]+) \| ([\d,]+) \| (\d+) \|", README, re.MULTILINE)
    assert rows
    for name, rate, micros, gflops in rows:
        row = bench["experiments"][name]
        assert int(rate.replace(",", "")) == round(row["steps_per_second"])
        assert int(micros.replace(",", "")) == round(1e6 / row["steps_per_second"])
        assert int(gflops) == round(row["gflops"])


@pytest.mark.parametrize("text", [README, BUILD], ids=["README", "BUILD"])
def test_links_and_paths_exist(text):
    targets = re.findall(r"\]\(([^)#]+)\)", text) + re.findall(r'src="([^"]+)"', text)
    targets += re.findall(r"`((?:gen|experiments|tests)/[\w/.]+)`", text)
    for target in targets:
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
