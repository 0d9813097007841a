"""Every experiment, by name: `python -m experiments train NAME`. Above each stands what to expect.

Adding a model is a file in `gen/models/` and a line here.
"""

from experiments.experiment import Experiment
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import (
    FVSBN,
    MADE,
    NADE,
    Autoregressive,
    GatedPixelCNN,
    PixelCNN,
)
from gen.models.boltzmann import DBM, DBN, RBM, BoltzmannMachine
from gen.models.diffusion import (
    DiscreteDiffusion,
    FlowMatching,
    GaussianDiffusion,
    ResidualMLP,
    UNet,
)
from gen.models.gan import GAN
from gen.models.hmm import HMM, Bernoulli, Categorical, Poisson
from gen.models.mixture import Mixture
from gen.models.vae import VAE

EXPERIMENTS: dict[str, Experiment] = {
    # Test error 0.014 per pixel; three seeds in 7 s on 4 cores.
    "ae_mnist": Experiment(
        Autoencoder(),
        data="mnist",
        batch_size=256,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Test −ELBO 99.5 nats; three seeds in 7 minutes on 4 cores.
    "vae_mnist": Experiment(
        VAE(),
        data="mnist",
        binarize="dynamic",
        steps=55_000,  # 100 epochs
        report_every=550,
        sample_every=5_500,
        checkpoint_every=2_750,
        steps_per_dispatch=50,
    ),
    # Digits that can be read, with specks; 9 minutes on 4 cores.
    "gan_mnist": Experiment(
        GAN(),
        data="mnist",
        steps=55_000,  # 100 epochs
        report_every=550,
        sample_every=5_500,
        checkpoint_every=2_750,
        steps_per_dispatch=10,
    ),
    # Test error 0.035 per pixel, more where pixels die; three seeds in 3 s on 2 cores.
    "ae_digits": Experiment(
        Autoencoder(hidden=(48,), latent=24),
        data="digits",
        batch_size=64,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Test −ELBO 23.2 nats; three seeds in 18 s on 2 cores.
    "vae_digits": Experiment(
        VAE(learning_rate=1e-3),
        data="digits",
        binarize="dynamic",
        steps=3_000,
        sample_every=500,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Samples that look like digits; three seeds in 36 s on 2 cores.
    "gan_digits": Experiment(
        GAN(generator=(128, 256), discriminator=(256, 128), latent=32),
        data="digits",
        steps=10_000,
        report_every=500,
        sample_every=1_000,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
    # MNIST, binarised once: test nats in experiments/results/RESULTS.md, beside published ones.
    # Test 205.8 nats; three seeds in 4 s.
    "bernoulli_binarized_mnist": Experiment(
        Mixture(components=1),
        data="binarized_mnist",
        batch_size=50_000,
        steps=2,
        report_every=1,
        checkpoint_every=1,
    ),
    # Test 125.6 nats; three seeds in 7 minutes.
    "mixture_binarized_mnist": Experiment(
        Mixture(components=500),
        data="binarized_mnist",
        batch_size=50_000,
        steps=100,
        report_every=10,
        validate_every=10,
        checkpoint_every=50,
    ),
    # Test 97.45 nats; three seeds in 6 minutes.
    "fvsbn_binarized_mnist": Experiment(
        Autoregressive(
            FVSBN(raster=False), learning_rate=1e-2, weight_decay=0.03, decay_steps=30_000
        ),
        data="binarized_mnist",
        steps=30_000,  # 60 epochs
        report_every=500,
        validate_every=500,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Test 87.87 nats; 45 minutes.
    "nade_binarized_mnist": Experiment(
        Autoregressive(NADE(500), learning_rate=1e-3, decay_steps=40_000),
        data="binarized_mnist",
        batch_size=50,
        steps=40_000,  # 40 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=1_000,
    ),
    # Test 88.93 nats; 11 minutes.
    "made_binarized_mnist": Experiment(
        Autoregressive(
            MADE((8_000,), raster=False, direct=True), learning_rate=1e-3, decay_steps=8_000
        ),
        data="binarized_mnist",
        steps=8_000,  # 16 epochs
        report_every=500,
        validate_every=500,
        checkpoint_every=2_500,
    ),
    # Test 89.14 nats; 14 minutes.
    "made_masks_binarized_mnist": Experiment(
        Autoregressive(
            MADE((8_000,), masks=32, raster=False, direct=True),
            learning_rate=1e-3,
            decay_steps=15_000,
        ),
        data="binarized_mnist",
        steps=15_000,  # 30 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=2_500,
    ),
    # Test 91.71 nats; 14 minutes.
    "made_deep_binarized_mnist": Experiment(
        Autoregressive(
            MADE((2_000, 2_000), masks=32, raster=False, direct=True),
            learning_rate=1e-3,
            decay_steps=20_000,
        ),
        data="binarized_mnist",
        steps=20_000,  # 40 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=2_500,
    ),
    # Test ≤ 89.97 nats; 126 minutes.
    "vae_binarized_mnist": Experiment(
        VAE(
            encoder=(200, 200),
            latent=50,
            decoder=(200, 200),
            activation="tanh",
            bound_samples=5_000,
            learning_rate=1e-3,
            decay_steps=5_000_000,
        ),
        data="binarized_mnist",
        batch_size=20,
        steps=5_000_000,  # 2,000 epochs
        report_every=10_000,
        validate_every=50_000,
        sample_every=500_000,
        checkpoint_every=100_000,
        steps_per_dispatch=50,
    ),
    # Test ≤ 88.41 nats; 128 minutes.
    "iwae_binarized_mnist": Experiment(
        VAE(
            encoder=(200, 200),
            latent=50,
            decoder=(200, 200),
            activation="tanh",
            samples=50,
            bound_samples=5_000,
            learning_rate=1e-3,
            decay_steps=400_000,
        ),
        data="binarized_mnist",
        batch_size=20,
        steps=400_000,  # 160 epochs
        report_every=2_500,
        validate_every=10_000,
        sample_every=50_000,
        checkpoint_every=10_000,
    ),
    # Test 85.37 nats; 116 minutes.
    "pixelcnn_binarized_mnist": Experiment(
        Autoregressive(PixelCNN(16, 7, 5), learning_rate=2e-3, decay_steps=30_000),
        data="binarized_mnist",
        batch_size=50,
        steps=30_000,  # 30 epochs
        report_every=250,
        validate_every=2_000,
        checkpoint_every=1_000,
    ),
    # Test 82.20 nats; 114 minutes.
    "gated_pixelcnn_binarized_mnist": Experiment(
        Autoregressive(GatedPixelCNN(32, 7, 5), learning_rate=1.5e-3, decay_steps=14_000),
        data="binarized_mnist",
        batch_size=50,
        steps=14_000,  # 14 epochs
        report_every=250,
        validate_every=2_000,
        checkpoint_every=1_000,
    ),
    # Test 106.5 nats; 8 minutes.
    "hmm_binarized_mnist": Experiment(
        HMM(states=256, start="examples", rate=0.2, smoothing=1e-5),
        data="binarized_mnist",
        batch_size=5_000,
        steps=100,
        report_every=5,
        validate_every=5,
        checkpoint_every=10,
    ),
    # MNIST, binarised dynamically.
    # Test 96.96 nats; three seeds in 12 minutes.
    "fvsbn_mnist": Experiment(
        Autoregressive(FVSBN(), learning_rate=1e-3, decay_steps=40_000),
        data="mnist",
        binarize="dynamic",
        steps=40_000,
        report_every=500,
        validate_every=500,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Test 85.56 nats; 48 minutes.
    "nade_mnist": Experiment(
        Autoregressive(NADE(500), learning_rate=1e-3, decay_steps=55_000),
        data="mnist",
        binarize="dynamic",
        batch_size=50,
        steps=55_000,  # 50 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=1_000,
    ),
    # Test 83.79 nats; 48 minutes.
    "made_mnist": Experiment(
        Autoregressive(
            MADE((8_000,), raster=False, direct=True), learning_rate=1e-3, decay_steps=27_500
        ),
        data="mnist",
        binarize="dynamic",
        steps=27_500,  # 50 epochs
        report_every=500,
        validate_every=500,
        checkpoint_every=2_500,
    ),
    # scikit-learn's digits, binarised dynamically: seconds.
    # Test 23.16 nats; three seeds in 29 s.
    "nade_digits": Experiment(
        Autoregressive(NADE(64), learning_rate=3e-3, decay_steps=3_000),
        data="digits",
        binarize="dynamic",
        steps=3_000,
        sample_every=500,
        validate_every=100,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Test 23.93 nats; three seeds in 70 s.
    "pixelcnn_digits": Experiment(
        Autoregressive(PixelCNN(8, 3), learning_rate=3e-3, decay_steps=1_500),
        data="digits",
        binarize="dynamic",
        steps=1_500,
        sample_every=500,
        validate_every=100,
        checkpoint_every=500,
    ),
    # UCI sets of binary vectors: seconds each, three seeds at once.
    # Test 100.4 nats; three seeds in 5 s.
    "bernoulli_uci_dna": Experiment(
        Mixture(components=1, smoothing=0.0007),
        data="uci_dna",
        batch_size=1_400,
        steps=2,
        report_every=1,
        validate_every=1,
        checkpoint_every=2,
    ),
    # Test 98.19 nats; three seeds in 7 s.
    "mixture_uci_dna": Experiment(
        Mixture(components=20, smoothing=0.0007),
        data="uci_dna",
        batch_size=1_400,
        steps=100,
        report_every=1,
        validate_every=1,
        checkpoint_every=100,
    ),
    # Test 83.32 nats; three seeds in 8 s.
    "fvsbn_uci_dna": Experiment(
        Autoregressive(FVSBN(), learning_rate=0.01, decay_steps=3_000, weight_decay=0.1),
        data="uci_dna",
        batch_size=100,
        steps=3_000,
        report_every=50,
        validate_every=50,
        checkpoint_every=1_500,
        steps_per_dispatch=50,
    ),
    # Test 82.87 nats; three seeds in 5 minutes.
    "nade_uci_dna": Experiment(
        Autoregressive(NADE(500), learning_rate=0.001, decay_steps=2_500),
        data="uci_dna",
        batch_size=100,
        steps=2_500,
        report_every=50,
        validate_every=50,
        checkpoint_every=1_250,
        steps_per_dispatch=50,
    ),
    # Test 83.94 nats; three seeds in 14 s.
    "made_uci_dna": Experiment(
        Autoregressive(
            MADE((20,), direct=True), learning_rate=0.01, decay_steps=3_000, weight_decay=0.2
        ),
        data="uci_dna",
        batch_size=100,
        steps=3_000,
        report_every=50,
        validate_every=50,
        checkpoint_every=1_500,
        steps_per_dispatch=50,
    ),
    # Test 78.99 nats; three seeds in 82 s.
    "made_masks_uci_dna": Experiment(
        Autoregressive(
            MADE((500,), masks=100, raster=False, direct=True),
            learning_rate=0.01,
            decay_steps=12_000,
            weight_decay=0.1,
        ),
        data="uci_dna",
        batch_size=100,
        steps=12_000,
        report_every=200,
        validate_every=200,
        checkpoint_every=6_000,
        steps_per_dispatch=50,
    ),
    # Test 34.24 nats; three seeds in 3 s.
    "bernoulli_uci_mushrooms": Experiment(
        Mixture(components=1, smoothing=0.0005),
        data="uci_mushrooms",
        batch_size=2_000,
        steps=2,
        report_every=1,
        validate_every=1,
        checkpoint_every=2,
    ),
    # Test 14.11 nats; three seeds in 8 s.
    "mixture_uci_mushrooms": Experiment(
        Mixture(components=100, smoothing=0.0001),
        data="uci_mushrooms",
        batch_size=2_000,
        steps=100,
        report_every=1,
        validate_every=1,
        checkpoint_every=100,
    ),
    # Test 10.12 nats; three seeds in 4 s.
    "fvsbn_uci_mushrooms": Experiment(
        Autoregressive(FVSBN(), learning_rate=0.05, decay_steps=5_000),
        data="uci_mushrooms",
        batch_size=100,
        steps=5_000,
        report_every=50,
        validate_every=50,
        checkpoint_every=2_500,
        steps_per_dispatch=50,
    ),
    # Test 9.77 nats; three seeds in 4 minutes.
    "nade_uci_mushrooms": Experiment(
        Autoregressive(NADE(500), learning_rate=0.005, decay_steps=4_000),
        data="uci_mushrooms",
        batch_size=100,
        steps=4_000,
        report_every=50,
        validate_every=50,
        checkpoint_every=2_000,
        steps_per_dispatch=50,
    ),
    # Test 10.03 nats; three seeds in 14 s.
    "made_uci_mushrooms": Experiment(
        Autoregressive(MADE((500,), direct=True), learning_rate=0.003, decay_steps=4_000),
        data="uci_mushrooms",
        batch_size=100,
        steps=4_000,
        report_every=50,
        validate_every=50,
        checkpoint_every=2_000,
        steps_per_dispatch=50,
    ),
    # Test 9.77 nats; three seeds in 24 s.
    "made_masks_uci_mushrooms": Experiment(
        Autoregressive(
            MADE((500,), masks=16, raster=False, direct=True),
            learning_rate=0.003,
            decay_steps=10_000,
        ),
        data="uci_mushrooms",
        batch_size=100,
        steps=10_000,
        report_every=200,
        validate_every=200,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Test 294.9 nats; three seeds in 3 s.
    "bernoulli_uci_nips": Experiment(
        Mixture(components=1, smoothing=0.002),
        data="uci_nips",
        batch_size=400,
        steps=2,
        report_every=1,
        validate_every=1,
        checkpoint_every=2,
    ),
    # Test 282.9 nats; three seeds in 6 s.
    "mixture_uci_nips": Experiment(
        Mixture(components=10, smoothing=0.03),
        data="uci_nips",
        batch_size=400,
        steps=100,
        report_every=1,
        validate_every=1,
        checkpoint_every=100,
    ),
    # Test 279.1 nats; three seeds in 6 s.
    "fvsbn_uci_nips": Experiment(
        Autoregressive(FVSBN(), learning_rate=0.003, decay_steps=500, weight_decay=1.0),
        data="uci_nips",
        batch_size=50,
        steps=500,
        report_every=20,
        validate_every=20,
        checkpoint_every=250,
        steps_per_dispatch=50,
    ),
    # Test 274.3 nats; three seeds in 2 minutes.
    "nade_uci_nips": Experiment(
        Autoregressive(NADE(500), learning_rate=0.001, decay_steps=500),
        data="uci_nips",
        batch_size=50,
        steps=500,
        report_every=20,
        validate_every=20,
        checkpoint_every=250,
        steps_per_dispatch=50,
    ),
    # Test 277.0 nats; three seeds in 16 s.
    "made_uci_nips": Experiment(
        Autoregressive(
            MADE((500,), direct=True), learning_rate=0.001, decay_steps=500, weight_decay=6.0
        ),
        data="uci_nips",
        batch_size=50,
        steps=500,
        report_every=20,
        validate_every=20,
        checkpoint_every=250,
        steps_per_dispatch=50,
    ),
    # Test 274.1 nats; three seeds in 76 s.
    "made_masks_uci_nips": Experiment(
        Autoregressive(
            MADE((500,), masks=32, raster=False, direct=True),
            learning_rate=0.003,
            decay_steps=6_000,
            weight_decay=3.0,
        ),
        data="uci_nips",
        batch_size=50,
        steps=6_000,
        report_every=100,
        validate_every=100,
        checkpoint_every=3_000,
        steps_per_dispatch=50,
    ),
    # Hidden Markov models: piano rolls in nats per time step, the best of eight restarts.
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
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
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
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
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
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
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
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
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
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=5,
        validate_every=5,
        checkpoint_every=50,
    ),
    # Letters, in nats per symbol.
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
    # Test 2.73 nats per symbol; eight restarts in 3 minutes.
    "hmm_letters_2": Experiment(
        HMM(states=2, emission=Categorical(levels=27), per="step"),
        data="letters",
        batch_size=954,
        steps=200,
        seeds=(0, 1, 2, 3, 4, 5, 6, 7),
        restarts=True,
        report_every=10,
        validate_every=10,
        checkpoint_every=100,
    ),
    # One series, and its maximised likelihood, −log L, as `total_nll`.
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
    # Test ≈ 85.91 nats; 11 minutes.
    "rbm_binarized_mnist": Experiment(
        RBM(sweeps=2, learning_rate=0.1, decay_steps=100_000, weight_decay=5e-4),
        data="binarized_mnist",
        steps=100_000,  # 200 epochs
        report_every=1_000,
        validate_every=5_000,
        sample_every=20_000,
        checkpoint_every=10_000,
        steps_per_dispatch=50,
    ),
    # So few hidden units that log Z can be summed, to hold AIS against it.
    # Test 137.3 nats; three seeds in 5 minutes.
    "rbm_20_binarized_mnist": Experiment(
        RBM(hidden=20, sweeps=5, learning_rate=0.05, decay_steps=20_000),
        data="binarized_mnist",
        steps=20_000,  # 40 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Test ≲ 85.96 nats; 57 minutes.
    "dbm_binarized_mnist": Experiment(
        DBM(
            pretraining=5_000,
            mean_field=5,
            sweeps=5,
            learning_rate=0.05,
            decay_steps=200_000,
            weight_decay=5e-4,
        ),
        data="binarized_mnist",
        steps=200_000,  # 400 epochs, 10 of them for each layer alone
        report_every=1_000,
        validate_every=5_000,
        sample_every=20_000,
        checkpoint_every=10_000,
    ),
    # Test ≲ 87.06 nats; 15 minutes.
    "dbn_binarized_mnist": Experiment(
        DBN(
            hidden=(500, 1_000),
            pretraining=50_000,
            machine=RBM(learning_rate=0.1, decay_steps=50_000, weight_decay=5e-4),
        ),
        data="binarized_mnist",
        steps=100_000,  # 100 epochs for each RBM
        report_every=1_000,
        sample_every=50_000,
        checkpoint_every=10_000,
        steps_per_dispatch=50,
    ),
    # Error of a linear classifier 1.6 %, on raw pixels 7.5 %, of the fine-tuned net 1.1 %.
    "rbm_mnist": Experiment(
        RBM(
            hidden=2_000,
            learning_rate=0.5,
            decay_steps=11_000,
            weight_decay=5e-4,
            sparsity=0.2,
            target=0.05,
            temperatures=1_000,
            annealed=100,
        ),
        data="mnist",
        steps=11_000,  # 20 epochs
        report_every=550,
        validate_every=2_750,
        checkpoint_every=5_500,
        probe=True,
    ),
    "dbm_mnist": Experiment(
        DBM(
            pretraining=1_100,
            mean_field=5,
            learning_rate=0.05,
            decay_steps=16_500,
            weight_decay=2e-4,
        ),
        data="mnist",
        binarize="dynamic",
        steps=16_500,  # 30 epochs, 2 of them for each layer alone
        report_every=550,
        validate_every=2_750,
        checkpoint_every=5_500,
        probe=True,
    ),
    # Error of a linear classifier 6.4 %, on raw pixels 21.9 %; three seeds in 7 s.
    # Test ≠ 28.03 nats; three seeds in 7 s.
    "rbm_digits_nudged": Experiment(
        RBM(hidden=100, training="pcd", learning_rate=0.06, centred=False, chains=10),
        data="digits_nudged",
        batch_size=10,
        steps=7_000,
        report_every=500,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
        probe=True,
    ),
    # Test ≈ 14.91 nats; three seeds in 49 s.
    "rbm_news": Experiment(
        RBM(hidden=50, sweeps=5, learning_rate=0.05, decay_steps=26_000, weight_decay=1e-3),
        data="news",
        steps=26_000,  # about 200 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
        probe=True,
    ),
    # Gaussian visible units, on grey levels: of a density.
    # Test -18.55 nats; three seeds in 15 s.
    "rbm_gaussian_digits": Experiment(
        RBM(hidden=16, units="gaussian", sweeps=5, learning_rate=0.01, decay_steps=10_000),
        data="digits",
        steps=10_000,
        report_every=250,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    # Test ≈ 23.48 nats; three seeds in 28 s.
    "bm_digits": Experiment(
        BoltzmannMachine(sweeps=1, learning_rate=0.05, decay_steps=6_000),
        data="digits",
        binarize="dynamic",
        steps=6_000,
        report_every=100,
        validate_every=500,
        sample_every=1_000,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
    # Test ≤ 82.66 nats; 78 minutes.
    "discrete_diffusion_mnist": Experiment(
        DiscreteDiffusion(UNet((96,), blocks=2, patch=4), draws=10, decay_steps=14_000),
        data="mnist",
        binarize="dynamic",
        steps=14_000,  # 25 epochs
        report_every=250,
        validate_every=3_500,
        sample_every=3_500,
        checkpoint_every=500,
    ),
    # Test ≤ 83.09 nats; 57 minutes.
    "discrete_diffusion_binarized_mnist": Experiment(
        DiscreteDiffusion(UNet((96,), blocks=2, patch=4), draws=10, decay_steps=9_000),
        data="binarized_mnist",
        steps=9_000,  # 18 epochs
        report_every=250,
        validate_every=3_000,
        sample_every=3_000,
        checkpoint_every=500,
    ),
    # Test ≤ 134.1 nats; three seeds in 66 s.
    "diffusion_digits": Experiment(
        GaussianDiffusion(
            ResidualMLP(width=256, layers=3),
            levels=17,
            highest=7.7,  # noise of a sixth of a level at t = 0
            draws=100,
            decay_steps=8_000,
        ),
        data="digits",
        steps=8_000,
        report_every=250,
        validate_every=1_000,
        sample_every=2_000,
        checkpoint_every=2_000,
        steps_per_dispatch=50,
    ),
    # 256 grey levels: of a size for a CPU.
    # Test ≤ 2040.7 nats; 52 minutes.
    "diffusion_mnist_small": Experiment(
        GaussianDiffusion(
            UNet((96,), blocks=2, patch=4),
            sample_steps=100,
            draws=10,
            ode_steps=200,
            ode_examples=200,
            decay_steps=6_000,
        ),
        data="mnist",
        steps=6_000,  # 11 epochs
        report_every=250,
        sample_every=2_000,
        checkpoint_every=500,
    ),
    # The bound in place of squares, by a net that sees noise below a level.
    # Test ≤ 617.5 nats; 46 minutes.
    "diffusion_mnist_likelihood": Experiment(
        GaussianDiffusion(
            UNet((96,), blocks=2, patch=4, pixels=32),
            schedule="log_linear",
            weighting="likelihood",
            fourier=8,
            draws=10,
            ode_steps=400,
            ode_examples=200,
            decay_steps=6_000,
        ),
        data="mnist",
        steps=6_000,  # 11 epochs
        report_every=250,
        sample_every=2_000,
        checkpoint_every=500,
    ),
    # Of a size for a GPU.
    "diffusion_mnist": Experiment(
        GaussianDiffusion(
            UNet((64, 128, 128), blocks=2),
            classes=10,
            guidance=1.0,
            ema_decay=0.9995,
            decay_steps=100_000,
        ),
        data="mnist",
        batch_size=128,
        steps=100_000,  # 233 epochs
        report_every=500,
        validate_every=5_000,
        sample_every=10_000,
        checkpoint_every=5_000,
    ),
    # Test ≤ 1562.8 nats; 30 minutes.
    "flow_matching_mnist": Experiment(
        FlowMatching(
            UNet((96,), blocks=2, patch=4), ode_steps=200, ode_examples=200, decay_steps=6_000
        ),
        data="mnist",
        steps=6_000,  # 11 epochs
        report_every=250,
        sample_every=2_000,
        checkpoint_every=500,
    ),
    # Test ≤ -2.91 nats; three seeds in 3 minutes.
    "diffusion_toy": Experiment(
        GaussianDiffusion(
            ResidualMLP(width=128, layers=3),
            levels=0,
            schedule="learned",
            weighting="likelihood",
            lowest=-7.0,
            highest=10.0,
            draws=100,
            ode_examples=5_000,
            decay_steps=20_000,
        ),
        data="eight_gaussians",
        batch_size=200,
        steps=20_000,
        report_every=500,
        validate_every=1_000,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
}
