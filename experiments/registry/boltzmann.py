"""Boltzmann machines: restricted, deep and general; deep belief nets."""

from experiments.experiment import Experiment
from gen.models.boltzmann import DBM, DBN, RBM, BoltzmannMachine
from gen.models.boltzmann.partition import AIS
from gen.models.dequantized import Dequantized
from gen.optimize import Optimizer

EXPERIMENTS = {
    # MNIST, binarised once.
    #
    # python -m experiments train rbm_binarized_mnist
    # Test ≈ 85.91 nats; 11 minutes.
    "rbm_binarized_mnist": Experiment(
        RBM(
            sweeps=2,
            optimizer=Optimizer("sgd", learning_rate=0.1, schedule="cosine", weight_decay=5e-4),
        ),
        data="binarized_mnist",
        steps=100_000,  # 200 epochs
        report_every=1_000,
        validate_every=5_000,
        sample_every=20_000,
        checkpoint_every=10_000,
        steps_per_dispatch=50,
    ),
    # With 20 hidden units log Z can be summed, and AIS can be compared with it.
    #
    # python -m experiments train rbm_20_binarized_mnist --seeds 0 1 2
    # Test 137.3 nats; three seeds in 5 minutes.
    "rbm_20_binarized_mnist": Experiment(
        RBM(
            hidden=20,
            sweeps=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine"),
        ),
        data="binarized_mnist",
        steps=20_000,  # 40 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # python -m experiments train dbm_binarized_mnist
    # Test ≲ 85.96 nats; 57 minutes.
    "dbm_binarized_mnist": Experiment(
        DBM(
            pretraining=5_000,
            mean_field_updates=5,
            sweeps=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=5e-4),
        ),
        data="binarized_mnist",
        steps=200_000,  # 400 epochs, 10 of them for each layer alone
        report_every=1_000,
        validate_every=5_000,
        sample_every=20_000,
        checkpoint_every=10_000,
    ),
    # python -m experiments train dbn_binarized_mnist
    # Test ≲ 87.06 nats; 15 minutes.
    "dbn_binarized_mnist": Experiment(
        DBN(
            hidden=(500, 1_000),
            pretraining=50_000,
            machine=RBM(
                optimizer=Optimizer(
                    "sgd",
                    learning_rate=0.1,
                    schedule="cosine",
                    decay_steps=50_000,  # the steps of each RBM, half of the run's
                    weight_decay=5e-4,
                )
            ),
        ),
        data="binarized_mnist",
        steps=100_000,  # 100 epochs for each RBM
        report_every=1_000,
        sample_every=50_000,
        checkpoint_every=10_000,
        steps_per_dispatch=50,
    ),
    # MNIST, whose labels are predicted from the hidden units.
    #
    # python -m experiments train rbm_mnist
    # Error of a linear classifier 1.6 %, on raw pixels 7.5 %, of the fine-tuned net 1.1 %.
    "rbm_mnist": Experiment(
        RBM(
            hidden=2_000,
            sparsity=0.2,
            target=0.05,
            ais=AIS(temperatures=1_000, chains=100),
            optimizer=Optimizer("sgd", learning_rate=0.5, schedule="cosine", weight_decay=5e-4),
        ),
        data="mnist",
        steps=11_000,  # 20 epochs
        report_every=550,
        validate_every=2_750,
        checkpoint_every=5_500,
        probe=True,
    ),
    # python -m experiments train dbm_mnist
    "dbm_mnist": Experiment(
        DBM(
            pretraining=1_100,
            mean_field_updates=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=2e-4),
        ),
        data="mnist",
        binarize="dynamic",
        steps=16_500,  # 30 epochs, 2 of them for each layer alone
        report_every=550,
        validate_every=2_750,
        checkpoint_every=5_500,
        probe=True,
    ),
    # scikit-learn's digits.
    #
    # python -m experiments train rbm_digits_nudged --seeds 0 1 2
    # Error of a linear classifier 6.4 %, on raw pixels 21.9 %; three seeds in 7 s.
    # Test ≠ 28.03 nats; three seeds in 7 s.
    "rbm_digits_nudged": Experiment(
        RBM(
            hidden=100,
            training="pcd",
            persistent_chains=10,
            centred=False,
            optimizer=Optimizer("sgd", learning_rate=0.06),
        ),
        data="digits_nudged",
        batch_size=10,
        steps=7_000,
        report_every=500,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
        probe=True,
    ),
    # Parallel tempering; with 16 hidden units log Z is exact.
    #
    # python -m experiments train rbm_tempered_digits --seeds 0 1 2
    # Test 24.15 nats; three seeds in 15 s.
    "rbm_tempered_digits": Experiment(
        RBM(
            hidden=16,
            training="pt",
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine"),
        ),
        data="digits",
        binarize="dynamic",
        steps=6_000,
        report_every=250,
        validate_every=1_000,
        checkpoint_every=3_000,
        steps_per_dispatch=50,
    ),
    # Gaussian visible units: a density, on dequantized grey levels.
    #
    # python -m experiments train rbm_gaussian_digits --seeds 0 1 2
    # Test ≤ 144.9 nats, 3.27 bits per pixel; three seeds in 18 s.
    "rbm_gaussian_digits": Experiment(
        Dequantized(
            RBM(
                hidden=16,
                units="gaussian",
                sweeps=5,
                optimizer=Optimizer("sgd", learning_rate=0.01, schedule="cosine"),
            ),
            levels=17,
        ),
        data="digits",
        steps=10_000,
        report_every=250,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Anomalies in tables: `protocol odds rbm_odds` trains it on 20 sets.
    #
    # python -m experiments train rbm_odds
    # Mean AUROC 87.1 % over the sets on the splits that the seed draws; five seeds of all sets in
    # 6 minutes on a busy core.
    "rbm_odds": Experiment(
        RBM(
            hidden=64,
            units="gaussian",
            sweeps=2,
            optimizer=Optimizer("sgd", learning_rate=0.01, schedule="cosine"),
        ),
        data="odds_cardio",
        batch_size=100,
        steps=2_000,
        report_every=500,
        checkpoint_every=2_000,
        steps_per_dispatch=50,
    ),
    # python -m experiments train bm_digits --seeds 0 1 2
    # Test ≈ 23.48 nats; three seeds in 28 s.
    "bm_digits": Experiment(
        BoltzmannMachine(
            sweeps=1,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine"),
        ),
        data="digits",
        binarize="dynamic",
        steps=6_000,
        report_every=100,
        validate_every=500,
        sample_every=1_000,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
    # 20 newsgroups: the presence of 100 words.
    #
    # python -m experiments train rbm_news --seeds 0 1 2
    # Test ≈ 14.91 nats; three seeds in 49 s.
    "rbm_news": Experiment(
        RBM(
            hidden=50,
            sweeps=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=1e-3),
        ),
        data="news",
        steps=26_000,  # about 200 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
        probe=True,
    ),
    # The group of a posting is four further visible units: p(group | words) is exact.
    #
    # python -m experiments train rbm_news_groups --seeds 0 1 2
    # Error of the group 16.7 %, as of logistic regression; three seeds in 144 s on a busy core.
    "rbm_news_groups": Experiment(
        RBM(
            hidden=50,
            sweeps=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=1e-3),
        ),
        data="news_groups",
        steps=26_000,  # about 200 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Three groups of four are normal; postings of the fourth are to be found.
    #
    # python -m experiments train rbm_news_foreign --seeds 0 1 2
    # AUROC 0.745 of the free energy; three seeds in 65 s on a busy core.
    "rbm_news_foreign": Experiment(
        RBM(
            hidden=50,
            sweeps=5,
            optimizer=Optimizer("sgd", learning_rate=0.05, schedule="cosine", weight_decay=1e-3),
        ),
        data="news_foreign",
        steps=10_000,  # about 190 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=2_000,
        steps_per_dispatch=50,
    ),
    # Windows of 8 steps of the same series as for `hmm_sensors`.
    #
    # python -m experiments train rbm_sensors --seeds 0 1 2
    # 25 % of the drifts are found and 2 % of the decoupled sensors: σ stays at the deviation of the
    # data, and so the machine sees little of the coupling. Three seeds in 31 s on a busy core.
    "rbm_sensors": Experiment(
        RBM(
            hidden=100,
            units="gaussian",
            training="cd",
            optimizer=Optimizer("sgd", learning_rate=0.01, momentum=0.9, schedule="cosine"),
        ),
        data="sensors_windows",
        steps=5_000,  # 100 epochs
        report_every=100,
        validate_every=500,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
}
