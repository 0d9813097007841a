"""Hidden Markov models."""

from experiments.experiment import Experiment
from gen.models.hmm import HMM, Bernoulli, Categorical, Gaussian, GaussianMixture, Poisson

EIGHT = (0, 1, 2, 3, 4, 5, 6, 7)

EXPERIMENTS = {
    # MNIST, binarised once: a sequence of 28 rows of 28 pixels.
    #
    # python -m experiments train hmm_binarized_mnist
    # Test 106.5 nats; 6 minutes on one core.
    "hmm_binarized_mnist": Experiment(
        HMM(states=256, start="examples", rate=0.2, smoothing=1e-5),
        data="binarized_mnist",
        batch_size=5_000,
        steps=100,
        report_every=5,
        validate_every=5,
        checkpoint_every=10,
    ),
    # Piano rolls, in nats per time step; the best of eight restarts.
    #
    # python -m experiments train hmm_jsb
    # Test 6.57 nats per step; eight restarts in 3 minutes.
    "hmm_jsb": Experiment(
        HMM(
            states=128,
            emission=Bernoulli(prior=0.01),
            start="examples",
            smoothing=0.001,
            per="step",
        ),
        data="jsb",
        batch_size=229,
        steps=150,
        seeds=EIGHT,
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # python -m experiments train hmm_jsb_64
    # Test 6.92 nats per step; eight restarts in 2 minutes.
    "hmm_jsb_64": Experiment(
        HMM(
            states=64,
            emission=Bernoulli(prior=0.01),
            start="examples",
            smoothing=0.001,
            per="step",
        ),
        data="jsb",
        batch_size=229,
        steps=150,
        seeds=EIGHT,
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # python -m experiments train hmm_jsb_32
    # Test 7.54 nats per step; eight restarts in 64 s.
    "hmm_jsb_32": Experiment(
        HMM(
            states=32,
            emission=Bernoulli(prior=0.01),
            start="examples",
            smoothing=0.001,
            per="step",
        ),
        data="jsb",
        batch_size=229,
        steps=150,
        seeds=EIGHT,
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # python -m experiments train hmm_jsb_16
    # Test 8.17 nats per step; eight restarts in 45 s.
    "hmm_jsb_16": Experiment(
        HMM(
            states=16,
            emission=Bernoulli(prior=0.01),
            start="examples",
            smoothing=0.001,
            per="step",
        ),
        data="jsb",
        batch_size=229,
        steps=150,
        seeds=EIGHT,
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # python -m experiments train hmm_nottingham_16
    # Test 4.44 nats per step; eight restarts in 15 minutes.
    "hmm_nottingham_16": Experiment(
        HMM(
            states=16,
            emission=Bernoulli(prior=0.01),
            start="examples",
            smoothing=0.001,
            per="step",
        ),
        data="nottingham",
        batch_size=694,
        steps=100,
        seeds=EIGHT,
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # Letters, in nats per symbol.
    #
    # python -m experiments train hmm_letters
    # Test 2.17 nats per symbol; three seeds in 10 minutes.
    "hmm_letters": Experiment(
        HMM(states=27, emission=Categorical(levels=27), per="step"),
        data="letters",
        batch_size=954,
        steps=300,
        seeds=(0, 1, 2),
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # python -m experiments train hmm_letters_2
    # Test 2.73 nats per symbol; eight restarts in 3 minutes.
    "hmm_letters_2": Experiment(
        HMM(states=2, emission=Categorical(levels=27), per="step"),
        data="letters",
        batch_size=954,
        steps=200,
        seeds=EIGHT,
        restarts=True,
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # Earthquakes: one series of counts and its maximised likelihood, −log L, as `total_nll`.
    #
    # python -m experiments train hmm_earthquakes
    # Test 328.528 nats; three seeds in 4 s.
    "hmm_earthquakes": Experiment(
        HMM(states=3, emission=Poisson(prior=0.0), smoothing=0.0, per="step"),
        data="earthquakes",
        batch_size=1,
        steps=500,
        seeds=(0, 1, 2),
        report_every=50,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # python -m experiments train hmm_earthquakes_2
    # Test 341.879 nats; three seeds in 4 s.
    "hmm_earthquakes_2": Experiment(
        HMM(states=2, emission=Poisson(prior=0.0), smoothing=0.0, per="step"),
        data="earthquakes",
        batch_size=1,
        steps=500,
        seeds=(0, 1, 2),
        report_every=50,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # python -m experiments train hmm_earthquakes_1
    # Test 391.919 nats; three seeds in 2 s.
    "hmm_earthquakes_1": Experiment(
        HMM(states=1, emission=Poisson(prior=0.0), smoothing=0.0, per="step"),
        data="earthquakes",
        batch_size=1,
        steps=500,
        seeds=(0, 1, 2),
        report_every=50,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Draws from an HMM of three states with full covariances: 147.8 ± 3.0 nats per sequence of the
    # test split by the true density.
    #
    # python -m experiments train hmm_regimes
    # Test 147.8 nats; eight restarts in 46 s.
    "hmm_regimes": Experiment(
        HMM(states=3, emission=Gaussian(covariance="full")),
        data="regimes",
        batch_size=200,
        steps=100,
        seeds=EIGHT,
        restarts=True,
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # python -m experiments train hmm_regimes_diagonal
    # Test 166.5 nats; eight restarts in 10 s.
    "hmm_regimes_diagonal": Experiment(
        HMM(states=3, emission=Gaussian(covariance="diagonal")),
        data="regimes",
        batch_size=200,
        steps=100,
        seeds=EIGHT,
        restarts=True,
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # python -m experiments train hmm_regimes_mixture
    # Test 157.1 nats; eight restarts in 17 s.
    "hmm_regimes_mixture": Experiment(
        HMM(states=3, emission=GaussianMixture(components=2)),
        data="regimes",
        batch_size=200,
        steps=100,
        seeds=EIGHT,
        restarts=True,
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # Series of six coupled sensors without a fault; `anomaly` finds the onsets of faults in the
    # test series.
    #
    # python -m experiments train hmm_sensors --seeds 0 1 2
    # A decoupled sensor is found 9.5 steps after the onset and a drift after 28.6, as by the true
    # law; three seeds in 102 s on a busy core.
    "hmm_sensors": Experiment(
        HMM(states=3, emission=Gaussian(covariance="full")),
        data="sensors",
        batch_size=200,
        steps=50,
        report_every=10,
        validate_every=10,
        checkpoint_every=50,
    ),
}
