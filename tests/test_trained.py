"""Trained models in two lines: run folders, published weights and exported files."""

import json
import math
import multiprocessing
import re
import shutil
import tomllib
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import published
import pytest
from conftest import NETWORKS, equal

import gen
from experiments import evaluation, folder, pictures
from experiments.__main__ import main
from experiments.registry import EXPERIMENTS
from experiments.run import load_run
from gen import blocks, data, trained, weights
from gen.core import UserError
from gen.data import Binarize, Format
from gen.models.autoregressive import Autoregressive
from gen.models.hmm import HMM
from gen.models.hmm.emissions import Categorical, Gaussian
from gen.models.mixture import Mixture
from gen.models.vae import VAE
from gen.nets import MLP
from gen.train import streams

ROOT = Path(__file__).parent.parent
QUICK = ("hmm_earthquakes", "hmm_regimes", "pixelcnn_digits", "vae_digits")
"""Published weights whose figure takes about a second."""
LONG = (
    "gated_pixelcnn_binarized_mnist",
    "pixelcnn_binarized_mnist",
    "pixelcnn_fashion_mnist",
    "pixelcnn_mnist",
    "vae_conv_binarized_mnist",
)
"""Published weights that take minutes: they are evaluated on a tenth of the test images."""
MOST_BYTES, MOST_BYTES_TOGETHER = 6_000_000, 50_000_000


def of(model, format=Format(peak=16), binarize: Binarize = "none"):  # noqa: B008
    """Return an untrained model with the API of a trained one."""
    state = jax.jit(model.init)(jax.random.key(0))
    return gen.Trained("untrained", model, state, 0, {}, format, binarize)


@pytest.fixture(scope="module")
def vae():
    return of(VAE((8, 8, 1), encoder=MLP((8,)), decoder=MLP((8,)), latent=3))


@pytest.fixture(scope="module")
def mixture():
    return of(Mixture((8, 8, 1), components=3), binarize="threshold")


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    """Return the folder of a short run of two seeds."""
    path = tmp_path_factory.mktemp("runs") / "two"
    small = ["--model.encoder.hidden", "8", "--model.decoder.hidden", "8", "--steps", "20"]
    small += ["--checkpoint-every", "10", "--report-every", "5", "--validate-every", "5"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "final_pictures", lambda *_: None)
        assert main(["train", "vae_digits", "--seeds", "3", "5", "--out", str(path), *small]) == 0
    return path


def content(path: Path) -> dict[str, bytes]:
    return {str(each): each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_a_run_folder_is_loaded_without_its_data_and_left_as_it_is(run_folder, monkeypatch):
    expected, before = load_run(run_folder), content(run_folder)
    monkeypatch.setattr(data, "load", lambda *_: pytest.fail("no data are needed"))
    run = gen.load(str(run_folder))
    assert run.model == expected.experiment.model
    assert equal(run.state, expected.experiment.of_seed(expected.state, 0))
    assert run.step == expected.chosen_step[0]
    assert run.format == expected.dataset.format
    assert (run.name, run.binarize, run.config["seeds"]) == ("vae_digits", "dynamic", [3, 5])
    second = gen.load(run_folder, seed_index=1)
    assert equal(second.state, expected.experiment.of_seed(expected.state, 1))
    with pytest.raises(UserError, match=r"seed_index 2 is out of range: take 0 … 1"):
        gen.load(run_folder, seed_index=2)
    assert content(run_folder) == before


def test_every_seed_of_a_run_without_validation_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "final_pictures", lambda *_: None)
    flags = ["--validate-every", "0", "--steps", "2", "--model.encoder.hidden", "8"]
    path = tmp_path / "run"
    assert main(["train", "vae_digits", "--seeds", "0", "1", "--out", str(path), *flags]) == 0
    first, second = (gen.load(path, seed_index=i) for i in range(2))
    assert first.step == second.step == 2
    assert not equal(first.state, second.state)
    assert equal(first.state, gen.load(path).state)


def test_samples_of_the_command_line_are_the_samples_in_python(run_folder, capsys):
    run = gen.load(run_folder)
    assert main(["sample", str(run_folder), "--n", "5", "--seed", "2"]) == 0
    x = np.load(run_folder / "samples" / "seed2_n5.npy")
    np.testing.assert_array_equal(x, run.sample(5, seed=2))
    expected = run.model.sample(run.state, streams(2).sample, 5)
    np.testing.assert_allclose(x, expected, atol=1e-5)


def test_damaged_checkpoints_and_files_are_named(run_folder, tmp_path):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    shutil.rmtree(copy / "checkpoints" / "20" / "tree")
    with pytest.warns(UserWarning, match="skipped the checkpoint of step 20, which is damaged"):
        assert gen.load(copy).step <= 10
    manifest = folder.read_manifest(copy)
    assert manifest
    folder.write_json(copy / "manifest.json", manifest | {"arrays": 3})
    with pytest.raises(UserError, match=r"manifest.json is damaged"):
        gen.load(copy)
    del manifest["format"]
    folder.write_json(copy / "manifest.json", manifest)
    with pytest.raises(UserError, match="is of an older version"):
        gen.load(copy)
    (copy / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"has lost its manifest.json"):
        gen.load(copy)


@pytest.mark.filterwarnings("ignore:skipped")
def test_a_run_of_an_older_version_is_sampled_by_the_command_line(run_folder, tmp_path, capsys):
    copy = Path(shutil.copytree(run_folder, tmp_path / "copy"))
    manifest = folder.read_manifest(copy)
    assert manifest
    del manifest["format"], manifest["arrays"]
    folder.write_json(copy / "manifest.json", manifest)
    config = json.loads((copy / "config.json").read_text())
    for part in (config["model"], *(config["model"][key] for key in ("encoder", "optimizer"))):
        del part["class"]
    del config["sha256"]
    folder.write_json(copy / "config.json", config)
    assert main(["sample", str(copy), "--n", "5", "--seed", "4"]) == 0
    assert capsys.readouterr().err == ""
    drawn = np.load(copy / "samples" / "seed4_n5.npy")
    np.testing.assert_array_equal(drawn, gen.load(run_folder).sample(5, seed=4))


@pytest.mark.parametrize("path", ["nowhere", "vae_digit", "runs/nowhere"])
def test_a_name_without_a_run_says_what_is_published(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hint = "did you mean .*vae_digits" if path == "vae_digit" else "list NAME says whether"
    with pytest.raises(UserError, match=f"{path} holds no run and is no published.*{hint}"):
        gen.load(path)
    assert not list(tmp_path.iterdir())


def test_a_published_result_without_weights_says_how_to_get_a_run(tmp_path, monkeypatch):
    monkeypatch.setattr(trained, "PUBLISHED", tmp_path)
    (tmp_path / "rbm_mnist.json").touch()
    line = "the weights of rbm_mnist are not published: .* train rbm_mnist makes"
    with pytest.raises(UserError, match=line):
        gen.load("rbm_mnist")


def test_examples_come_in_any_form_that_users_have(vae, digits):
    x = digits.test["x"][:5]  # uint8, [5, 8, 8, 1]
    codes = vae.encode(x)
    assert codes.shape == (5, 3)
    forms = (x / 16, (x / 16).astype(np.float32), x.astype(np.int64), x.astype(float), x[..., 0])
    for same in (*forms, x.tolist()):
        np.testing.assert_allclose(vae.encode(same), codes, atol=1e-6)
    for single in (x[1], x[1, ..., 0]):
        np.testing.assert_allclose(vae.encode(single), codes[1], atol=1e-6)
    np.testing.assert_allclose(vae.decode(codes[1]), vae.reconstruct(x)[1], atol=1e-6)
    assert vae.reconstruct(x).dtype == np.float32
    assert 0 < vae.reconstruct(x).min() < vae.reconstruct(x).max() < 1


def test_blocks_give_the_results_of_all_rows_at_once(mixture, digits, monkeypatch):
    x = digits.test["x"][:19]
    expected = mixture.log_prob(x)
    monkeypatch.setattr(blocks, "BLOCK", 8)
    np.testing.assert_allclose(mixture.log_prob(x), expected, rtol=1e-6)
    black = (x > 8).astype(np.float32)
    by_model = mixture.model.log_prob(mixture.state, {"x": black})
    np.testing.assert_allclose(expected, by_model, rtol=1e-6)
    np.testing.assert_allclose(mixture.score(x), -expected, rtol=1e-6)


def test_draws_are_stored_integers_and_means_are_floats(mixture, vae, digits):
    drawn = mixture.sample(20)
    assert drawn.dtype == np.uint8
    assert set(np.unique(drawn)) == {0, 16}
    x, upper = digits.test["x"][:5], np.arange(8)[:, None] < 4
    completed = mixture.complete(x, np.broadcast_to(upper, (8, 8)), seed=1)
    np.testing.assert_array_equal(completed[:, :4], 16 * (x[:, :4] > 8))
    assert not equal(completed, mixture.complete(x, np.broadcast_to(upper, (8, 8)), seed=2))
    hidden = np.where(upper[..., None], x / 16, np.nan)  # hidden values do not matter
    mask = np.broadcast_to(upper[..., None], x.shape)
    np.testing.assert_array_equal(mixture.complete(hidden, mask, seed=1), completed)
    assert vae.sample(3).dtype == np.float32
    np.testing.assert_array_equal(vae.sample(3, seed=1), vae.sample(3, seed=1))


def test_a_row_has_the_same_draws_in_any_order_and_subset(mixture, digits):
    x, upper = digits.test["x"][:9], np.broadcast_to(np.arange(8)[:, None] < 4, (8, 8))
    completed = mixture.complete(x, upper, seed=1)
    np.testing.assert_array_equal(mixture.complete(x[::-1], upper, seed=1)[::-1], completed)
    np.testing.assert_array_equal(mixture.complete(x[5], upper, seed=1), completed[5])
    repeated = mixture.complete(x[[5] * 9], upper, seed=1)
    np.testing.assert_array_equal(repeated[0], completed[5])
    assert len(np.unique(repeated, axis=0)) > 1  # equal rows are drawn independently


def test_a_model_without_a_hash_is_taken():
    class NoHash(Mixture):
        __hash__: Any = None

    run = of(NoHash((3,), components=2), Format())
    assert run.sample(2).shape == (2, 3)
    assert run.log_prob(np.eye(3)).shape == (3,)


def test_symbols_of_sequences_come_back_as_symbols():
    model = HMM((6,), states=2, emission=Categorical(27))
    letters = of(model, Format(peak=26, symbols=" abcdefghijklmnopqrstuvwxyz"))
    drawn = letters.sample(4)
    assert drawn.dtype == np.uint8
    assert drawn.max() <= 26
    assert letters.log_prob(drawn).shape == (4,)
    whole = letters.log_prob(drawn[0, :3])  # a single sequence of another length
    padded_run = replace(letters, padded=True)
    with pytest.raises(UserError, match="trained on padded sequences and x has no lengths"):
        padded_run.log_prob(drawn)
    np.testing.assert_allclose(padded_run.log_prob(drawn[0, :3]), whole, rtol=1e-6)
    padded = letters.log_prob(drawn, length=[3, 6, 6, 6])[0]
    np.testing.assert_allclose(padded, whole, rtol=1e-5)
    completed = letters.complete(drawn[0], np.arange(6) < 2, length=5)  # a single length
    assert completed.shape == (6,)
    np.testing.assert_array_equal(completed[[0, 1, 5]], [*drawn[0, :2], 0])


def test_lists_of_unequal_sequences_need_no_lengths():
    model = HMM((6, 1), states=2, emission=Gaussian())
    run = replace(of(model, Format(levels=0)), padded=True)
    rows = np.random.default_rng(0).normal(size=(3, 6)).astype(np.float32)
    ragged = [rows[0, :3], rows[1].tolist(), rows[2, :5]]
    length = [3, 6, 5]
    for method in ("log_prob", "score"):
        expected = getattr(run, method)(rows[..., None], length=length)
        with_axis = [np.reshape(each, (-1, 1)) for each in ragged]
        for form in (ragged, with_axis, tuple(ragged), np.array(ragged, object)):
            np.testing.assert_allclose(getattr(run, method)(form), expected, rtol=1e-6)
        single = getattr(run, method)(ragged[0])
        np.testing.assert_allclose(single, expected[0], rtol=1e-5)
    assert run.encode(ragged).shape == (3, 6, 2)
    mask = [np.arange(n) < 2 for n in length]
    completed = run.complete(ragged, mask, seed=1)
    np.testing.assert_array_equal(completed[:, :2, 0], rows[:, :2])
    assert not completed[0, 3:].any()
    equal_lengths = run.log_prob([rows[0, :3], rows[1, :3]])
    np.testing.assert_allclose(equal_lengths[0], run.log_prob(ragged)[0], rtol=1e-5)
    with pytest.raises(UserError, match="x is a list of different shapes: leave length out"):
        run.score(ragged, length=length)


def test_standardised_columns_keep_their_own_units():
    model = HMM((3, 2), states=2, emission=Gaussian())
    plain = of(model, Format(levels=0))
    format = Format(levels=0, center=(5.0, -1.0), scale=(10.0, 0.5))
    scaled = replace(plain, format=format)
    x = np.random.default_rng(0).normal(size=(4, 3, 2))
    own = x * format.scale + np.array(format.center)
    expected = plain.log_prob(x) - 3 * np.log(10 * 0.5)
    np.testing.assert_allclose(scaled.log_prob(own), expected, rtol=1e-5)
    drawn = format.restore(plain.sample(3))
    np.testing.assert_allclose(scaled.sample(3), drawn, rtol=1e-6)


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (
            lambda run, x: run.log_prob(x),
            "VAE of untrained has no method log_prob; its methods are",
        ),
        (lambda run, x: run.log_prob(x), "encode, decode, reconstruct, complete, score$"),
        (lambda run, x: run.encode(x * 9), r"integers 0 … 144 .* takes integers 0 … 16 or floats"),
        (
            lambda run, x: run.encode(x + 0.5),
            r"floats from 0.5 to 16.5 .* takes floats in \[0, 1\]",
        ),
        (
            lambda run, x: run.encode(x * 9.0),
            r"integers 0 … 144 .* takes integers 0 … 16 or floats",
        ),
        (lambda run, x: run.encode(x[:, :4]), r"shape \(5, 4, 8, 1\): .* \('N', 8, 8, 1\)"),
        (lambda run, x: run.encode(x[:0]), "no rows"),
        (lambda run, x: run.encode([x[0], x[0, :4]]), "list of different shapes: pass examples"),
        (lambda run, x: run.encode([["a"]]), "x has the dtype <U1"),
        (lambda run, x: run.decode(np.zeros(4)), r"z has the shape \(4,\): .* \('N', 3\)"),
        (lambda run, x: run.sample(0), "n 0 is out of range"),
        (lambda run, x: run.sample(3, seed=-1), "seed -1 is out of range"),
        (lambda run, x: run.sample(3, label=2), "takes no labels"),
    ],
)
def test_what_a_call_lacks_is_named_in_one_line(vae, digits, call, named):
    x = digits.test["x"][:5].astype(np.int32)
    x[0, 0, 0] = 16
    with pytest.raises(UserError, match=named) as raised:
        call(vae, x)
    assert "\n" not in str(raised.value)


def test_labels_are_numbers_or_names_in_turn():
    from test_runs import Labelled

    run = gen.Trained("labelled", Labelled(), np.zeros(()), 1, {}, Format(labels=("a", "b")))
    assert run.sample(3, label=["b", 3])[:, 0].tolist() == [1, 3, 1]
    for label in ("c", 5, []):
        with pytest.raises(UserError, match="label"):
            run.sample(3, label=label)


def damaged_npz(path: Path, name: str) -> None:
    """Write a file .npz that holds no weights: an .npy, noise in the archive, or another header."""
    header = {"list": "[]", "text": "{", "empty": "{}"}.get(name, '{"experiment": "a", "step": 1}')
    np.savez_compressed(path, header=np.array(header), w=np.arange(1000.0))
    if name == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(3))
    if name == "noise":
        content = bytearray(path.read_bytes())
        content[600:900] = bytes(300)
        path.write_bytes(content)
    if name == "objects":
        np.savez(path, header=np.array(header), w=np.array([{}], object))


@pytest.mark.parametrize("name", ["npy", "noise", "objects", "list", "text", "empty"])
def test_files_that_hold_no_weights_are_refused_in_one_line(name, tmp_path):
    path = tmp_path / "weights.npz"
    damaged_npz(path, name)
    with pytest.raises(UserError, match=r"weights.npz") as raised:
        weights.header(path)
    assert "\n" not in str(raised.value)


def test_a_path_in_the_home_folder_is_found(run_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(run_folder.parent))
    assert gen.load("~/two").step == gen.load(run_folder).step


@pytest.mark.parametrize("ending", ["safetensors", "npz"])
def test_an_exported_run_is_loaded_from_its_file(run_folder, tmp_path, ending, capsys):
    path = tmp_path / f"vae.{ending}"
    assert main(["export", str(run_folder), str(path)]) == 0
    run, expected = gen.load(path), gen.load(run_folder)
    assert run.model == expected.model
    assert (run.name, run.step, run.binarize) == (expected.name, expected.step, expected.binarize)
    assert equal(run.state.params, expected.state.params)
    names = weights.header(path)["arrays"]
    assert names["params/decoder/Dense_0/kernel"] == "float32[10, 8]"
    assert main(["export", str(run_folder), str(tmp_path / "vae.pt")]) == 2
    assert "end it in .safetensors or .npz" in capsys.readouterr().err


def test_networks_of_the_users_own_are_passed_as_a_model(tmp_path):
    model, path = replace(NETWORKS["vae_user_encoder"], shape=(8, 8, 1)), tmp_path / "own.npz"
    state = jax.jit(model.init)(jax.random.key(0))
    weights.save(path, state, "own", 7, model=model, format=Format(peak=16))
    with pytest.raises(UserError, match=r"conftest.UserEncoder', which this project lacks: pass"):
        gen.load(path)
    assert gen.load(path, model=model).encode(np.zeros((2, 8, 8, 1))).shape == (2, 3)


def listed() -> list[str]:
    """Return the published weights that are committed."""
    ignored = (evaluation.RESULTS / ".gitignore").read_text().splitlines()
    return [name for name in trained.published() if f"{name}/{trained.WEIGHTS}" not in ignored]


def test_every_family_has_published_weights_of_bounded_size():
    sizes = {name: (trained.PUBLISHED / name / trained.WEIGHTS).stat().st_size for name in listed()}
    assert max(sizes.values()) <= MOST_BYTES
    assert sum(sizes.values()) <= MOST_BYTES_TOGETHER
    families = {each.model.family for each in EXPERIMENTS.values()}
    assert {EXPERIMENTS[name].model.family for name in sizes} == families
    assert "gated_pixelcnn_binarized_mnist" in sizes
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    patterns = settings["tool"]["setuptools"]["package-data"]["experiments"]
    assert f"results/*/{trained.WEIGHTS}" in patterns
    ignored = (evaluation.RESULTS / ".gitignore").read_text().split()
    excluded = settings["tool"]["setuptools"]["exclude-package-data"]["experiments"]
    assert excluded == [f"results/{path}" for path in ignored]


@pytest.mark.parametrize("name", listed())
def test_published_weights_name_their_model_and_data(name):
    about = weights.header(trained.PUBLISHED / name / trained.WEIGHTS)
    experiment = EXPERIMENTS[name].for_run()
    model = weights.model_of(name, about)
    assert replace(model, shape=experiment.model.shape) == experiment.model
    assert (about["experiment"], about["binarize"]) == (name, experiment.binarize)
    record = json.loads((evaluation.RESULTS / f"{name}.json").read_text())
    assert about["step"] <= record["step"]


@pytest.fixture(scope="module")
def optimising():
    """Return an executor whose process compiles with all optimisations, which the tests leave out:
    the evaluation of large models then takes a third of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
            executor.submit(int).result()  # starts the process
            patch.undo()
            yield executor


@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in listed()]
)
def test_published_weights_evaluate_to_their_figures(name, request):
    if "mnist" in EXPERIMENTS[name].data:
        request.getfixturevalue("prepared")
    try:
        data.load(EXPERIMENTS[name].data)
    except UserError as error:  # the photographs of textures are not among the test data
        if "could not be downloaded" not in str(error):
            raise
        pytest.skip(str(error))
    record = json.loads((evaluation.RESULTS / f"{name}.json").read_text())
    seed = record["seeds"][0]
    figures = next(each for each in record["per_seed"] if each["seed"] == seed)
    arguments = name, 1_000 if name in LONG else None, seed
    if name in QUICK:
        results = published.values_of(*arguments)
    else:
        executor = request.getfixturevalue("optimising")
        results = executor.submit(published.values_of, *arguments).result()
    assert results.keys() <= figures.keys() - {"seed"}
    assert {"nll", "bce_elbo", "mse", "d_accuracy", "d_pairs", "total_nll", "error"} & {*results}
    for of_name, value in results.items():
        expected = figures[of_name]["value"]
        tolerance = 4 * math.sqrt(10) if name in LONG else 0.2  # of a tenth of the images
        error = tolerance * (figures[of_name]["stderr"] or 0) + 3e-4 * abs(expected)
        assert abs(value - expected) < error, of_name


def test_published_weights_draw_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sample", "pixelcnn_digits", "--n", "3"]) == 0
    paths = capsys.readouterr().out.split()
    assert paths == [f"samples/pixelcnn_digits/seed0_n3.{ending}" for ending in ("png", "npy")]
    run = gen.load("pixelcnn_digits")
    assert isinstance(run.model, Autoregressive)
    np.testing.assert_array_equal(np.load(paths[1]), run.sample(3))


def test_published_weights_are_evaluated_by_their_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["evaluate", "hmm_earthquakes"]) == 0
    record = json.loads((evaluation.RESULTS / "hmm_earthquakes.json").read_text())
    (seed,) = [each for each in record["per_seed"] if each["seed"] == record["seeds"][0]]
    printed = capsys.readouterr().out
    assert printed.startswith(f"published weights of hmm_earthquakes, seed {seed['seed']}, step ")
    for name in seed.keys() - {"seed"}:
        assert re.search(rf"^ ?{name} ", printed, re.M)  # the whole name
    assert f" {seed['nll']['value']:.3f}"[:6] in printed
    assert main(["evaluate", "hmm_earthquakes", "--publish"]) == 2
    assert "--publish takes a run folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_a_decoder_is_reloaded_in_pytorch_as_build_md_shows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("torch")
    monkeypatch.chdir(tmp_path)
    assert main(["export", "vae_digits", "vae.safetensors"]) == 0
    (block,) = re.findall(r"```python\n(import torch.*?)```", (ROOT / "BUILD.md").read_text(), re.S)
    namespace = {}
    exec(compile(block, "BUILD.md", "exec"), namespace)
    z = np.random.default_rng(0).normal(size=(5, 10)).astype(np.float32)
    images = namespace["decode"](namespace["torch"].from_numpy(z)).numpy()
    expected = gen.load("vae_digits").decode(z)
    np.testing.assert_allclose(images, expected, atol=1e-5)
