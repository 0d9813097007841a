"""The benchmarks: counts of operations, the shape of their results, and the command."""

import json
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from experiments import bench
from experiments.__main__ import main
from experiments.bench import boltzmann, diffusion, hmm, pytorch, sampling, timing, training
from experiments.experiment import Experiment
from experiments.registry import EXPERIMENTS
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import NADE, Autoregressive
from gen.models.diffusion import DiscreteDiffusion, GaussianDiffusion, ResidualMLP
from gen.models.hmm import HMM, Categorical, Gaussian
from gen.nets import MLP


def power(x: jax.Array, n: int, **options: Any) -> jax.Array:
    """Return x^n for a matrix x, by a loop."""
    return jax.lax.fori_loop(0, n, lambda i, y: x @ y, jnp.eye(len(x)), **options)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (lambda x: x @ x, False),
        (lambda x: jax.random.normal(jax.random.key(0), x.shape), False),
        (partial(power, n=4), True),
        (lambda x: jax.vmap(jax.jit(partial(power, n=4)))(x[None]), True),
        (jax.grad(lambda x: power(x, 4).sum()), True),
        (lambda x: jax.lax.cond(x[0, 0] > 0, partial(power, n=4), jnp.sin, x), True),
        (lambda x: jax.lax.while_loop(lambda y: y.sum() < 1, lambda y: 2 * y, x), True),
        (partial(power, n=4, unroll=2), True),
        (partial(power, n=4, unroll=True), False),
        (partial(power, n=1), False),
    ],
)
def test_loops_are_found_in_every_part_of_a_program(function, expected):
    assert training.has_loop(jax.make_jaxpr(function)(jnp.ones((3, 3)))) == expected


def test_the_compiler_counts_the_products_of_a_step_without_loops(digits):
    """The products of a linear layer of D inputs and H outputs cost 2 B D H operations forwards,
    and as many for each gradient: of the weights, and of the inputs except for the first layer."""
    hidden, batch, size = 300, 50, 64
    net = MLP((hidden,), "linear")
    model = Autoencoder(shape=digits.shape, encoder=net, decoder=net, output="linear")
    experiment = Experiment(model, data="digits", batch_size=batch).on(digits)
    layers = 2 * size * hidden, 3 * hidden * hidden, 3 * hidden * size
    products = 2 * batch * sum(layers)
    flops = training.step_flops(experiment, digits)
    assert flops is not None
    assert products < flops < 1.2 * products


def test_a_step_with_a_loop_has_no_count(digits):
    model = Autoregressive(NADE(5), levels=digits.format.levels)
    experiment = Experiment(model, data="digits", batch_size=10).on(digits)
    assert training.step_flops(experiment, digits) is None


def test_filtering_is_timed_for_each_number_of_steps_in_a_block(monkeypatch):
    monkeypatch.setattr(hmm, "STEPS", 50)
    monkeypatch.setattr(hmm, "STATES", 3)
    monkeypatch.setattr(hmm, "BLOCKS", (7,))
    speeds = hmm.filtering_speeds(repeats=1)
    assert [row.block for row in speeds] == [0, 7]
    assert all(row.seconds > 0 for row in speeds)
    assert hmm.filtering_json(speeds)["seconds"].keys() == {"0", "7"}
    assert hmm.filtering_table(speeds).row_count == 2


@pytest.mark.slow
def test_em_is_timed_without_the_other_libraries(monkeypatch):
    gaussian = HMM(shape=(20, 2), states=3, emission=Gaussian())
    categorical = HMM(shape=(40,), states=2, emission=Categorical(levels=4), block=5)
    settings = {"gaussian": hmm.Setting(gaussian, 3), "categorical": hmm.Setting(categorical, 1)}
    monkeypatch.setattr(hmm, "SETTINGS", settings)
    monkeypatch.setattr(hmm, "optional", lambda module: None)
    speeds = hmm.em_speeds(0.01)
    assert speeds.keys() == settings.keys()
    for row in speeds.values():
        assert (row["gen"] or 0) > 0
        assert row["hmmlearn"] is None
    assert hmm.em_table(speeds).row_count == 2


def test_the_timed_diffusion_models_are_registered():
    for name in diffusion.NAMES:
        assert EXPERIMENTS[name].model.family == "diffusion"


def test_every_peer_is_an_experiment_and_without_pytorch_the_rows_say_so(monkeypatch, digits):
    assert set(pytorch.NAMES) <= set(EXPERIMENTS)
    monkeypatch.setattr(pytorch, "optional", lambda module: None)
    experiment = Experiment(Autoencoder(encoder=MLP((5,)), decoder=MLP((6,))), data="digits")
    speeds = {"name": pytorch.speed("name", experiment, None, 1.0)}
    assert speeds["name"].parameters == 64 * 5 + 5 + 5 * 6 + 6 + 6 * 64 + 64
    assert pytorch.as_json(speeds)["name"]["ratio"] is None
    assert list(pytorch.table(speeds).columns[4].cells) == ["not installed"]


def test_a_broken_library_is_not_called_absent(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "broken_library.py").write_text("from json import absent_name")
    (tmp_path / "needs_absent.py").write_text("import absent_library")
    (tmp_path / "needs_module.py").write_text("import gen.absent_module")
    assert timing.optional("needs_absent") is None
    for name in ("broken_library", "needs_module"):
        with pytest.raises(ImportError, match="absent_"):
            timing.optional(name)


def test_runs_take_turns_and_each_round_begins_with_another():
    calls: list[str] = []
    runs = {name: partial(calls.append, name) for name in ("a", "b")}
    times = timing.interleaved(runs, 2)
    assert calls == ["a", "b", "b", "a"]
    assert [len(seconds) for seconds in times.values()] == [2, 2]


@pytest.mark.slow
def test_pytorch_networks_have_the_parameters_of_the_registered_experiments():
    pytest.importorskip("torch")
    from experiments.bench import torch_nets as peers

    assert tuple(peers.PEERS) == pytorch.NAMES
    images = peers.torch.rand(2, 1, 28, 28).round()
    for name in pytorch.NAMES:
        model = EXPERIMENTS[name].for_run().model
        state = jax.eval_shape(model.init, jax.random.key(0))
        peer = peers.PEERS[name](model, False)
        leaves = jax.tree.leaves(model.parameters(state))
        assert peer.parameters == sum(leaf.size for leaf in leaves), name
        peer.step(images)


@pytest.mark.slow
def test_machines_are_timed_beside_scikit_learn(monkeypatch):
    monkeypatch.setattr(boltzmann, "SETTINGS", (boltzmann.Setting(5, 10, 0.1),))
    speed = boltzmann.speed(rows=40, variables=6, temperatures=3, rounds=1)
    assert min(speed.ais_seconds, *speed.training[0][1:]) > 0
    assert boltzmann.table(speed).row_count == 2


@pytest.mark.slow
def test_every_sampler_is_timed_and_its_network_calls_are_counted(monkeypatch):
    net = ResidualMLP(width=8, layers=1)
    model = GaussianDiffusion(net, levels=17, classes=10, guidance=1.0)
    monkeypatch.setattr(diffusion, "STEPS", (3,))
    experiment = Experiment(model, data="digits")
    guided = diffusion.speed(experiment, None, 0.01, batch=10, n=4)
    calls = {way.sampler: way.calls for way in guided.sampling}
    assert calls == {"ancestral": 6, "ddim": 6, "heun": 12, "dpm": 6}  # with labels and without
    experiment = replace(experiment, model=DiscreteDiffusion(net, levels=17))
    discrete = diffusion.speed(experiment, None, 0.01, batch=10, n=4)
    assert [(way.sampler, way.calls) for way in discrete.sampling] == [("ancestral", 3)]
    rates = [guided.examples_per_second, *(way.samples_per_second for way in guided.sampling)]
    assert min(rates) > 0
    stored = json.loads(json.dumps(diffusion.as_json({"name": guided})))
    assert stored["name"]["sampling"][0]["sampler"] == "ancestral"
    assert diffusion.table({"guided": guided, "discrete": discrete}).row_count == 7


def test_the_subjects_of_each_family_are_measured(monkeypatch):
    way = diffusion.Sampling("ddim", 10, 10, 5.0)
    machine = boltzmann.Training("784 × 256, batches of 10", 20_000.0, 5_000.0, 4.0)
    results = {
        (training, "matmul_gflops"): 500.0,
        (training, "speed"): training.Speed(100.0, 1.5, 30.0),
        (sampling, "speed"): sampling.Speed(64, 0.01, 2.0),
        (hmm, "em_speeds"): {"setting": {"gen": 2.0, "hmmlearn": None}},
        (hmm, "filtering_speeds"): [hmm.Filtering(0, 0.05), hmm.Filtering(100, 0.02)],
        (boltzmann, "speed"): boltzmann.Speed(10_000, [machine], 90.0),
        (diffusion, "speed"): diffusion.Speed(300.0, 16, [way]),
        (pytorch, "speed"): pytorch.Speed(
            1_000, 100, 300.0, 150.0, 200.0, 2.0, 1.5, 1.9, 2.1, 20, 2
        ),
    }
    for (module, name), result in results.items():
        monkeypatch.setattr(module, name, lambda *_, result=result: result)
    families = {
        "ae_digits": set(),
        "nade_digits": set(),
        "hmm_earthquakes": {"em", "filtering"},
        "rbm_news": {"rbm"},
        diffusion.NAMES[0]: {"diffusion", "pytorch"},
    }
    always = {"device", "matmul_gflops", "experiments", "sampling"}
    for name, subjects in families.items():
        assert bench.run([name], None, 1.0, lambda table: None).keys() == always | subjects
    tables: list[Any] = []
    record = bench.run(list(families), None, 1.0, tables.append)
    assert [table.row_count for table in tables] == [5, 1, 1, 2, 2, 2, 1]
    assert list(record["experiments"]) == list(families)
    assert list(record["sampling"]) == ["nade_digits"]
    assert json.loads(json.dumps(record)) == record


@pytest.mark.slow
def test_the_command_prints_and_stores_speeds(tmp_path, capsys):
    path = tmp_path / "bench.json"
    assert main(["bench", "ae_digits", "nade_digits", "--seconds", "0.2", "--json", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "ae_digits" in printed
    assert "naive" in printed
    record = json.loads(path.read_text())
    assert list(record["sampling"]) == ["nade_digits"]
    assert record["sampling"]["nade_digits"]["naive_seconds"] > 0
    row = record["experiments"]["ae_digits"]
    assert row["steps_per_second"] > 0
    assert record["matmul_gflops"] > row["gflops"] > 0
    assert record["experiments"]["nade_digits"]["gflops"] is None
