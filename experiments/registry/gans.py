"""Generative adversarial networks."""

from experiments.experiment import Experiment
from gen.models.gan import GAN
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer

EXPERIMENTS = {
    # python -m experiments train gan_mnist
    # Digits that can be read, with specks; 9 minutes on 4 cores.
    "gan_mnist": Experiment(
        GAN(),  # the textbook's networks
        data="mnist",
        steps=55_000,  # 100 epochs
        report_every=550,
        sample_every=5_500,
        checkpoint_every=2_750,
        steps_per_dispatch=10,
    ),
    # python -m experiments train gan_digits --seeds 0 1 2
    # Samples that look like digits; three seeds in 36 s on 2 cores.
    "gan_digits": Experiment(
        GAN(
            generator=MLP((128, 256), "relu"),
            discriminator=MLP((256, 128), "relu", dropout=0.3),
            latent=32,
        ),
        data="digits",
        steps=10_000,
        report_every=500,
        sample_every=1_000,
        checkpoint_every=1_000,
        steps_per_dispatch=50,
    ),
    # Grey or colour images, by convolutions.
    #
    # python -m experiments train gan_conv_mnist
    # Digits that can be read; 1.6 minutes on 2 cores.
    "gan_conv_mnist": Experiment(
        GAN(
            latent=32,
            generator=ConvDecoder((256,), (128, 64, 32), batch_norm=True),
            discriminator=ConvEncoder((16, 32, 64), (), "leaky_relu"),
            optimizer=Optimizer(learning_rate=1e-3, b1=0.5),
        ),
        data="mnist",
        steps=3_000,  # 5 epochs
        report_every=100,
        sample_every=1_000,
        checkpoint_every=500,
    ),
}
