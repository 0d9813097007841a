"""Speed of training and sampling, beside other implementations where there are any.

Each module measures one subject:

- `training`: steps per second of any experiment, beside a large matrix product.
- `sampling`: ancestral sampling of autoregressive models, with a cache and without.
- `hmm`: EM beside hmmlearn and dynamax; filtering in parallel over blocks beside one scan.
- `boltzmann`: epochs of an RBM beside scikit-learn's, and AIS.
- `diffusion`: training, and sampling by each sampler in few and in many steps.
- `pytorch`: training of some experiments beside PyTorch, in networks of the same layers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from experiments.bench import boltzmann, diffusion, hmm, pytorch, sampling, training
from experiments.folder import device_name
from experiments.registry import EXPERIMENTS
from gen.models.autoregressive import Autoregressive
from gen.models.boltzmann import RBM
from gen.models.hmm import HMM


def run(
    names: Sequence[str], data_dir: Path | None, seconds: float, show: Callable[[Any], None]
) -> dict[str, Any]:
    """Measure the speed of experiments, and the subjects that their families have.

    Args:
      names: names of registered experiments.
      data_dir: the folder of prepared data sets, or None for the default.
      seconds: the time to train for, once for each experiment.
      show: takes each table (of rich) as soon as it is measured.

    Returns:
      The measurements, for a JSON file.
    """
    experiments = {name: EXPERIMENTS[name] for name in names}

    def of_kind(kind):
        return {name: each for name, each in experiments.items() if isinstance(each.model, kind)}

    device, peak = device_name(), training.matmul_gflops()
    speeds = {
        name: training.speed(experiment, data_dir, seconds)
        for name, experiment in experiments.items()
    }
    show(training.table(speeds, peak, device))
    record: dict[str, Any] = {
        "device": device,
        "matmul_gflops": round(peak, 1),
        "experiments": training.as_json(speeds),
        "sampling": {},
    }
    if autoregressive := of_kind(Autoregressive):
        samplers = {
            name: sampling.speed(experiment, data_dir)
            for name, experiment in autoregressive.items()
        }
        show(sampling.table(samplers))
        record["sampling"] = sampling.as_json(samplers)
    if of_kind(HMM):
        record["em"] = hmm.em_speeds(seconds)
        show(hmm.em_table(record["em"]))
        filtering = hmm.filtering_speeds()
        show(hmm.filtering_table(filtering))
        record["filtering"] = hmm.filtering_json(filtering)
    if of_kind(RBM):
        machine = boltzmann.speed()
        show(boltzmann.table(machine))
        record["rbm"] = boltzmann.as_json(machine)
    if denoisers := [name for name in names if name in diffusion.NAMES]:
        timed = {name: diffusion.speed(experiments[name], data_dir, seconds) for name in denoisers}
        show(diffusion.table(timed))
        record["diffusion"] = diffusion.as_json(timed)
    if peers := [name for name in names if name in pytorch.NAMES]:
        beside = {name: pytorch.speed(name, experiments[name], data_dir, seconds) for name in peers}
        show(pytorch.table(beside))
        record["pytorch"] = pytorch.as_json(beside)
    return record
