"""Every experiment, by name. Each opens with its command's result: what to expect, on what.

Adding a model is a file in `gen/models/` and a line here.
"""

from experiments.experiment import Experiment
from gen.models.autoencoder import Autoencoder
from gen.models.gan import GAN
from gen.models.vae import VAE

EXPERIMENTS: dict[str, Experiment] = {
    "ae_mnist": Experiment(
        Autoencoder(),
        data="mnist",
        batch_size=256,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
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
    "gan_mnist": Experiment(
        GAN(),
        data="mnist",
        steps=55_000,  # 100 epochs
        report_every=550,
        sample_every=5_500,
        checkpoint_every=2_750,
        steps_per_dispatch=10,
    ),
    "ae_digits": Experiment(
        Autoencoder(hidden=(48,), latent=24),
        data="digits",
        batch_size=64,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    "vae_digits": Experiment(
        VAE(learning_rate=1e-3),
        data="digits",
        binarize="dynamic",
        steps=3_000,
        sample_every=500,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    "gan_digits": Experiment(
        GAN(generator=(128, 256), discriminator=(256, 128), latent=32),
        data="digits",
        steps=10_000,
        report_every=500,
        sample_every=1_000,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
}
