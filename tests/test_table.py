"""The table of results: what it prints, in which order, and that the committed one is current."""

import json

import pytest

from experiments import table
from experiments.__main__ import main
from experiments.evaluation import RESULTS
from experiments.published import PUBLISHED
from experiments.registry import EXPERIMENTS


def record(name, data, value, kind, **settings):
    estimate = {"value": value, "stderr": 0.2345, "kind": kind, "n": 100, "settings": settings}
    return {
        "experiment": name,
        "data": data,
        "binarize": "none",
        "estimates": {"nll": estimate},
        "seeds": [0, 1, 2] if "seeds" in settings else [0],
        "parameters": 12345,
        "train_seconds": 61.7,
        "device": "a machine",
        "command": f"python -m experiments train {name}",
    }


@pytest.fixture
def folder(tmp_path):
    records = [
        record("vae_binarized_mnist", "binarized_mnist", 89.5, "upper bound", z_per_example=5000),
        record("nade_binarized_mnist", "binarized_mnist", 87.9, "exact", seeds=3, seeds_stderr=0.1),
        record("pixelcnn_binarized_mnist", "binarized_mnist", 82.0, "exact"),
        record("nade_uci_dna", "uci_dna", 83.0, "exact"),
    ]
    ais = record("rbm_binarized_mnist", "binarized_mnist", 86.0, "AIS")
    ais["estimates"]["nll_reverse"] = {**ais["estimates"]["nll"], "value": 86.12}
    for made in [*records, ais]:
        (tmp_path / f"{made['experiment']}.json").write_text(json.dumps(made))
    (tmp_path / "ae_mnist.json").write_text(
        json.dumps({"experiment": "ae_mnist", "data": "mnist", "binarize": "none", "estimates": {}})
    )
    return tmp_path


def test_rows_are_sorted_and_marked(folder):
    text = table.markdown(folder).split("## DNA")[0]
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1].split("_")[0] for row in rows] == ["pixelcnn", "rbm", "nade", "vae"]
    assert (
        "| ≤ 89.50 ± 0.23 | upper bound, 5,000 samples | 1 | – | 12,345 | 62 | a machine |" in text
    )
    assert "| ≈ 86.00 ± 0.23 | AIS, reverse end 86.12 | 1 |" in text
    assert "| 87.90 ± 0.23 | exact | 3 | ± 0.1 |" in text
    assert "| 81.30 [1] | +0.70 |" in text
    assert "| ≤ 88.71 [2] | +0.79 |" in text
    assert f"[1] {PUBLISHED['pixelcnn_binarized_mnist'].source}" in text
    assert "nade_uci_dna" in table.markdown(folder).split("## DNA")[1]


def test_every_published_figure_is_of_a_registered_experiment_with_a_table():
    for name, published in PUBLISHED.items():
        assert EXPERIMENTS[name].data in table.TITLES
        assert published.source


def test_the_committed_table_is_made_from_the_committed_files():
    assert (RESULTS / "RESULTS.md").read_text() == table.markdown(RESULTS)


def test_command_writes_all_tables_and_prints_the_ones_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setattr("experiments.evaluation.RESULTS", folder)
    assert main(["table", "--data", "uci_dna"]) == 0
    printed = capsys.readouterr().out
    assert "nade_uci_dna" in printed
    assert "83.00 ± 0.23" in printed
    assert "pixelcnn" not in printed
    assert (folder / "RESULTS.md").read_text() == table.markdown(folder)
    assert main(["table", "--data", "cifar"]) == 2
    assert "no table of 'cifar'" in capsys.readouterr().err


def test_only_probabilities_of_the_binary_data_stand_in_a_table(folder, capsys, monkeypatch):
    grey = record("nade_mnist", "mnist", 700.0, "exact")
    density = record("vae_binarized_mnist", "binarized_mnist", -700.0, "upper bound", density=True)
    (folder / "nade_mnist.json").write_text(json.dumps(grey))
    (folder / "vae_binarized_mnist.json").write_text(json.dumps(density))
    text = table.markdown(folder)
    assert "700" not in text
    (folder / "nade_mnist.json").write_text(json.dumps(grey | {"binarize": "dynamic"}))
    assert "| 700.00 ± 0.23 |" in table.markdown(folder)
    (folder / "nade_mnist.json").write_text("{")
    monkeypatch.setattr("experiments.evaluation.RESULTS", folder)
    assert main(["table"]) == 2
    assert "nade_mnist.json is damaged" in capsys.readouterr().err
