"""The page of results: its tables, their order, and whether the committed page is current."""

import json

import pytest

from experiments import table
from experiments.__main__ import main
from experiments.folder import RESULTS
from experiments.published import PUBLISHED
from experiments.registry import EXPERIMENTS

CLEAN = "0123456" + "0" * 33  # a commit without later changes


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
        "commit": CLEAN,
        "evaluated_at_commit": CLEAN,
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
    autoencoder = record("ae_mnist", "mnist", 0.014, "exact")
    autoencoder["estimates"] = {"mse": autoencoder["estimates"]["nll"]}
    autoencoder["evaluated_at_commit"] = f"{CLEAN}-dirty"
    (tmp_path / "ae_mnist.json").write_text(json.dumps(autoencoder))
    return tmp_path


def likelihoods(folder):
    """Return the part of the page that has the likelihoods by data set."""
    return table.markdown(folder).split("## Likelihoods by data set")[1]


def test_every_estimate_has_a_row_of_the_first_table(folder):
    first = table.markdown(folder).split("## Likelihoods by data set")[0]
    rows = [line for line in first.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1::2][:2] for row in rows] == [
        ["ae_mnist", "mse"],
        ["nade_binarized_mnist", "nll"],
        ["nade_uci_dna", "nll"],
        ["pixelcnn_binarized_mnist", "nll"],
        ["rbm_binarized_mnist", "nll"],
        ["rbm_binarized_mnist", "nll_reverse"],
        ["vae_binarized_mnist", "nll"],
    ]
    assert rows[1].endswith("| 87.90 ± 0.23 | exact | 100 | 3 | ± 0.1 | 12,345 | 62 | 0123456 |")


def test_faults_of_training_and_rows_of_uses_have_tables(folder, monkeypatch):
    failed = record("gan_collapsed_digits", "digits", 0.1, "exact")
    failed["faults"] = ["step 500, seed 0: collapse: diversity is 0.0017; try pack 2"]
    (folder / "gan_collapsed_digits.json").write_text(json.dumps(failed))
    (folder / "ae_mnist").mkdir()
    error = {"value": 0.25, "stderr": 0.01, "kind": "exact", "n": 9, "settings": {}}
    use = {"experiment": "ae_mnist", "rows": [{"method": "codes", "error": error}, {"labels": 100}]}
    (folder / "ae_mnist" / "features.json").write_text(json.dumps(use))
    monkeypatch.setitem(table.USES, "features", ("Features", "What they are.\n"))
    page = table.markdown(folder)
    faults, features = page.split("## Faults of training")[1].split("## Features")
    row = "| `gan_collapsed_digits` | step 500, seed 0: collapse: diversity is 0.0017 |"
    assert row in faults
    assert [line for line in features.splitlines() if line.startswith("| ")] == [
        "| experiment | method | error | labels |",
        "| --- | --- | --- | --- |",
        "| `ae_mnist` | codes | 0.250 ± 0.010 | – |",
        "| `ae_mnist` | – | – | 100 |",
    ]


def test_the_table_of_a_use_has_the_files_of_all_variants(folder):
    (folder / "ae_mnist").mkdir()
    for name in ("anomaly", "anomaly-complexity-mnist", "anomalies"):
        use = {"experiment": "ae_mnist", "rows": [{"file": name}]}
        (folder / "ae_mnist" / f"{name}.json").write_text(json.dumps(use))
    files = {row["file"] for row in table.use_rows(folder, "anomaly")}
    assert files == {"anomaly", "anomaly-complexity-mnist"}


@pytest.mark.parametrize("commit", [f"{CLEAN}-dirty", f"{CLEAN} and {CLEAN}", None])
def test_a_result_without_a_clean_commit_says_so(folder, commit):
    page = table.markdown(folder)
    assert page.count("| commit not recorded |") == 1  # of the autoencoder
    for field in ("commit", "evaluated_at_commit"):
        changed = {**record("nade_uci_dna", "uci_dna", 83.0, "exact"), field: commit}
        (folder / "nade_uci_dna.json").write_text(json.dumps(changed))
        rows = [
            line for line in table.markdown(folder).splitlines() if "| `nade_uci_dna` |" in line
        ]
        assert len(rows) == 2
        assert all(row.endswith("| commit not recorded |") for row in rows)


def test_rows_are_sorted_and_marked(folder):
    text = likelihoods(folder).split("## DNA")[0]
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
    assert "nade_uci_dna" in likelihoods(folder).split("## DNA")[1]


def test_every_published_figure_belongs_to_a_registered_experiment_and_has_a_link():
    for name, published in PUBLISHED.items():
        assert EXPERIMENTS[name].data in table.TITLES
        assert "https://" in published.source


def test_the_committed_table_is_made_from_the_committed_files():
    assert (RESULTS / "RESULTS.md").read_text() == table.markdown(RESULTS)


def test_command_writes_all_tables_and_prints_the_ones_asked_for(folder, monkeypatch, capsys):
    monkeypatch.setattr("experiments.folder.RESULTS", folder)
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
    assert "700" not in likelihoods(folder)
    (folder / "nade_mnist.json").write_text(json.dumps(grey | {"binarize": "dynamic"}))
    assert "| 700.00 ± 0.23 |" in likelihoods(folder)
    (folder / "nade_mnist.json").write_text("{")
    monkeypatch.setattr("experiments.folder.RESULTS", folder)
    assert main(["table"]) == 2
    assert "nade_mnist.json is damaged" in capsys.readouterr().err
