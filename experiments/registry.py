"""Every experiment, by name: `python -m experiments train NAME`. Above each stands what to expect.

Adding a model is a file in `gen/models/` and a line here.
"""

from experiments.experiment import Experiment
from gen.models.autoencoder import Autoencoder
from gen.models.autoregressive import FVSBN, MADE, NADE, Autoregressive, GatedPixelCNN, PixelCNN
from gen.models.gan import GAN
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
    "fvsbn_binarized_mnist": Experiment(
        Autoregressive(net=FVSBN(), learning_rate=1e-3, decay_steps=20_000),
        data="binarized_mnist",
        steps=20_000,  # 40 epochs
        report_every=500,
        validate_every=500,
        checkpoint_every=5_000,
        steps_per_dispatch=50,
    ),
    "nade_binarized_mnist": Experiment(
        Autoregressive(net=NADE(500), learning_rate=1e-3, decay_steps=40_000),
        data="binarized_mnist",
        batch_size=50,
        steps=40_000,  # 40 epochs
        report_every=500,
        validate_every=1_000,
        checkpoint_every=1_000,
    ),
    "made_binarized_mnist": Experiment(
        Autoregressive(net=MADE((8_000,)), learning_rate=5e-4, decay_steps=25_000),
        data="binarized_mnist",
        steps=25_000,  # 50 epochs
        report_every=500,
        validate_every=500,
        checkpoint_every=2_500,
    ),
    "pixelcnn_binarized_mnist": Experiment(
        Autoregressive(net=PixelCNN(16, 7, 5), learning_rate=2e-3, decay_steps=30_000),
        data="binarized_mnist",
        batch_size=50,
        steps=30_000,  # 30 epochs
        report_every=250,
        validate_every=2_000,
        checkpoint_every=1_000,
    ),
}
