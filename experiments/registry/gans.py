"""Generative adversarial networks."""

from experiments.experiment import Experiment
from gen.models.gan import GAN, DCGANDiscriminator, DCGANGenerator
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer

DCGAN_ADAM = Optimizer(learning_rate=2e-4, b1=0.5)  # Radford et al. 2016, section 4
WGAN_GP_ADAM = Optimizer(learning_rate=1e-4, b1=0.5, b2=0.9)  # the authors' program for MNIST
FASTER_WGAN_GP_ADAM = Optimizer(learning_rate=5e-4, b1=0.5, b2=0.9)

MNIST_GENERATOR = DCGANGenerator((128, 64, 32))
MNIST_DISCRIMINATOR = DCGANDiscriminator((32, 64, 128))

# For a CPU, smaller than the networks of the PacGAN paper, which have 64 to 512 channels. The
# discriminator has no batch normalisation, and both players learn at 2.5 times the rate of DCGAN.
STACKED_GENERATOR = ConvDecoder((256,), (128, 64, 32), batch_norm=True)
STACKED_DISCRIMINATOR = ConvEncoder((32, 64, 128), (), "leaky_relu")
STACKED_ADAM = Optimizer(learning_rate=5e-4, b1=0.5)

DIGITS_GENERATOR = DCGANGenerator((64, 32), size=3)
DIGITS_DISCRIMINATOR = DCGANDiscriminator((32, 64), size=3)

DENSE_GENERATOR = MLP((128, 256), "relu")
DENSE_DISCRIMINATOR = MLP((256, 128), "leaky_relu")

EXPERIMENTS = {
    # python -m experiments train gan_mnist --seeds 0 1 2
    # Digits that can be read, with specks. Fréchet distance 6.2 by `judge`; three seeds in 4
    # minutes on an H100, beside other runs.
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
    # A failure on purpose: with Adam's usual momentum and fifty times the learning rate all samples
    # become the same image.
    #
    # python -m experiments train gan_collapsed_digits --seeds 0 1 2
    # One image, and warnings of a collapse and of a saturated discriminator; a minute on 2 cores.
    "gan_collapsed_digits": Experiment(
        GAN(
            generator=MLP((128, 256), "relu"),
            discriminator=MLP((256, 128), "relu", dropout=0.3),
            latent=32,
            optimizer=Optimizer(learning_rate=1e-2),
        ),
        data="digits",
        steps=2_000,
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
    # Deep convolutional networks with batch normalisation (Radford et al. 2016,
    # https://arxiv.org/abs/1511.06434). Half of the channels of the usual networks for MNIST.
    #
    # python -m experiments train dcgan_mnist --seeds 0 1 2
    # Fréchet distance 1.1 by `judge`, where `gan_mnist` has 6.2; three seeds in 5 minutes on an
    # H100, beside other runs.
    "dcgan_mnist": Experiment(
        GAN(
            generator=MNIST_GENERATOR,
            discriminator=MNIST_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="mnist",
        steps=11_000,  # 20 epochs
        report_every=110,
        sample_every=1_100,
        checkpoint_every=1_100,
    ),
    # The same on clothes.
    #
    # python -m experiments train dcgan_fashion_mnist
    # Most samples are clothes. Fréchet distance 2.5 by `judge`; 19 minutes on a busy core.
    "dcgan_fashion_mnist": Experiment(
        GAN(
            generator=MNIST_GENERATOR,
            discriminator=MNIST_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="fashion_mnist",
        steps=5_500,  # 10 epochs
        report_every=110,
        sample_every=1_100,
        checkpoint_every=1_100,
    ),
    # Wasserstein loss and gradient penalty. A step has five critic steps, each on 50 rows of its
    # own (Gulrajani et al. 2017, https://arxiv.org/abs/1704.00028, algorithm 1). The latent
    # dimension and the rows of a step are from the authors' program for MNIST. That program has
    # four times the channels, no batch normalisation in the generator, images in [0, 1] by a
    # sigmoid, and 40 times the steps at a fifth of the learning rate.
    #
    # python -m experiments train wgan_gp_mnist --seeds 0 1 2
    # Most samples are digits. Fréchet distance 1.6 by `judge`; three seeds in 53 minutes on a busy
    # core.
    "wgan_gp_mnist": Experiment(
        GAN(
            latent=128,
            loss="wasserstein",
            penalty="gradient_penalty",
            discriminator_steps=5,
            generator=DCGANGenerator((64, 32, 16)),
            discriminator=DCGANDiscriminator((16, 32, 64), batch_norm=False),
            optimizer=FASTER_WGAN_GP_ADAM,
        ),
        data="mnist",
        batch_size=250,  # 5 × 50
        steps=5_000,  # 23 epochs
        report_every=100,
        sample_every=500,
        checkpoint_every=500,
    ),
    # Both players are given the label, as in Mirza & Osindero 2014,
    # https://arxiv.org/abs/1411.1784, and are convolutional.
    #
    # python -m experiments train cgan_mnist
    # By `judge`, the classifier reads the label back from 98.7 % of the samples, and a classifier
    # trained on samples reads 97.8 % of the test digits; 22 minutes on a busy core.
    "cgan_mnist": Experiment(
        GAN(
            classes=10,
            ema_decay=0.999,
            generator=MNIST_GENERATOR,
            discriminator=MNIST_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="mnist",
        steps=5_500,  # 10 epochs
        report_every=110,
        sample_every=1_100,
        checkpoint_every=1_100,
    ),
    # One code of ten classes and four continuous codes beside 62 dimensions of noise (Chen et al.
    # 2016, https://arxiv.org/abs/1606.03657, appendix C.1), with their learning rates. Channels and
    # units are halved, kernels are 3 × 3 where theirs are 4 × 4, and the weight of the continuous
    # codes' bound is 0.1, where their program takes 1. Chen et al. take two continuous codes.
    #
    # python -m experiments train infogan_mnist --seeds 0 1 2
    # Normalised mutual information of the class code and the label: 0.86, 0.81 and 0.91 by seed,
    # where 0.90 ± 0.03 is published. The classes of seed 2 are the ten digits. Seed 0 mixes 7 and
    # 9, and seed 1 mixes 3, 5 and 8. Fréchet distance 0.44 by `judge`; three seeds in 109
    # minutes, the last 16 of them on two cores and the others on one.
    "infogan_mnist": Experiment(
        GAN(
            latent=62,
            categorical_codes=(10,),
            continuous_codes=4,
            generator=ConvDecoder((512,), (64, 32), batch_norm=True),
            discriminator=ConvEncoder((32, 64), (512,), "leaky_relu", batch_norm=True),
            optimizer=DCGAN_ADAM,
            generator_rate=5.0,
        ),
        data="mnist",
        steps=22_000,  # 40 epochs
        report_every=110,
        sample_every=5_500,
        checkpoint_every=1_100,
    ),
    # Three random digits as the channels of an image: 1,000 modes (Metz et al. 2017,
    # https://arxiv.org/abs/1611.02163). The protocol is PacGAN's (https://arxiv.org/abs/1712.04086):
    # modes are counted by a classifier in 26,000 samples.
    #
    # python -m experiments train dcgan_stacked_mnist
    # 999 of 1,000 modes and a reverse KL of 0.27. PacGAN's DCGAN, with batch normalisation in the
    # discriminator, has 99. 13 minutes on a busy core.
    "dcgan_stacked_mnist": Experiment(
        GAN(
            generator=STACKED_GENERATOR,
            discriminator=STACKED_DISCRIMINATOR,
            optimizer=STACKED_ADAM,
        ),
        data="stacked_mnist",
        batch_size=64,
        steps=10_000,
        report_every=100,
        sample_every=1_000,
        checkpoint_every=500,
    ),
    # The discriminator is given two images at once.
    #
    # python -m experiments train pacgan_stacked_mnist
    # All 1,000 modes and a reverse KL of 0.16, published are 1,000 and 0.06; 30 minutes on a busy
    # core.
    "pacgan_stacked_mnist": Experiment(
        GAN(
            pack=2,
            generator=STACKED_GENERATOR,
            discriminator=STACKED_DISCRIMINATOR,
            optimizer=STACKED_ADAM,
        ),
        data="stacked_mnist",
        batch_size=128,  # 64 packs
        steps=10_000,
        report_every=100,
        sample_every=1_000,
        checkpoint_every=500,
    ),
    # python -m experiments train wgan_gp_stacked_mnist
    # All 1,000 modes in 26,000 samples and a reverse KL of 0.075, published are 959 and 0.73;
    # 16 minutes on a busy core.
    "wgan_gp_stacked_mnist": Experiment(
        GAN(
            loss="wasserstein",
            penalty="gradient_penalty",
            discriminator_steps=5,
            generator=STACKED_GENERATOR,
            discriminator=STACKED_DISCRIMINATOR,
            optimizer=FASTER_WGAN_GP_ADAM,
        ),
        data="stacked_mnist",
        batch_size=320,  # 5 × 64
        steps=3_000,
        report_every=100,
        sample_every=500,
        checkpoint_every=500,
    ),
    # The structures above on 8 × 8 digits.
    #
    # python -m experiments train dcgan_digits --seeds 0 1 2
    # Samples that look like digits; three seeds in 64 s on one core.
    "dcgan_digits": Experiment(
        GAN(
            latent=32,
            generator=DIGITS_GENERATOR,
            discriminator=DIGITS_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="digits",
        steps=5_000,
        report_every=100,
        sample_every=1_000,
    ),
    # python -m experiments train wgan_gp_digits --seeds 0 1 2
    # Samples that mostly look like digits; three seeds in 97 s on one core.
    "wgan_gp_digits": Experiment(
        GAN(
            latent=32,
            loss="wasserstein",
            penalty="gradient_penalty",
            discriminator_steps=5,
            generator=DIGITS_GENERATOR,
            discriminator=DCGANDiscriminator((32, 64), size=3, batch_norm=False),
            optimizer=WGAN_GP_ADAM,
        ),
        data="digits",
        batch_size=250,  # 5 × 50
        steps=4_000,
        report_every=100,
        sample_every=1_000,
    ),
    # python -m experiments train cgan_digits --seeds 0 1 2
    # Samples of the class that is asked for; three seeds in 68 s on one core.
    "cgan_digits": Experiment(
        GAN(
            latent=32,
            classes=10,
            generator=DIGITS_GENERATOR,
            discriminator=DIGITS_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="digits",
        steps=5_000,
        report_every=100,
        sample_every=1_000,
    ),
    # python -m experiments train infogan_digits --seeds 0 1 2
    # Normalised mutual information of the class code and the label 0.64; three seeds in 117 s on a
    # busy core.
    "infogan_digits": Experiment(
        GAN(
            latent=22,
            categorical_codes=(10,),
            continuous_codes=2,
            generator=DIGITS_GENERATOR,
            discriminator=DIGITS_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="digits",
        steps=5_000,
        report_every=100,
        sample_every=1_000,
    ),
    # python -m experiments train pacgan_digits --seeds 0 1 2
    # Samples that look like digits; three seeds in 146 s on a busy core.
    "pacgan_digits": Experiment(
        GAN(
            latent=32,
            pack=2,
            generator=DIGITS_GENERATOR,
            discriminator=DIGITS_DISCRIMINATOR,
            optimizer=DCGAN_ADAM,
        ),
        data="digits",
        steps=5_000,
        report_every=100,
        sample_every=1_000,
    ),
    # An encoder, trained by a discriminator of pairs (x, z) (Donahue et al. 2017,
    # https://arxiv.org/abs/1605.09782).
    #
    # python -m experiments train bigan_digits --seeds 0 1 2
    # Samples that look like digits, and reconstructions, most of the same class; three seeds in
    # 4 minutes on a busy core.
    "bigan_digits": Experiment(
        GAN(
            latent=10,
            generator=DENSE_GENERATOR,
            discriminator=DENSE_DISCRIMINATOR,
            encoder=MLP((256, 128), "leaky_relu"),
            optimizer=DCGAN_ADAM,
        ),
        data="digits",
        steps=10_000,
        report_every=200,
        sample_every=2_000,
        probe=True,
    ),
    # Relativistic loss with zero-centred penalties on both sides (R3GAN, Huang et al. 2024,
    # https://arxiv.org/abs/2501.05441), and samples from averaged weights. Deviations from the
    # paper: dense networks in place of its convolutional ones without normalisation layers, and
    # constant learning rate, β₂ and γ, which it schedules.
    #
    # python -m experiments train r3gan_digits --seeds 0 1 2
    # Samples that look like digits, some of them faint; three seeds in 3 minutes on a busy core.
    "r3gan_digits": Experiment(
        GAN(
            latent=32,
            loss="relativistic",
            penalty="r1_r2",
            penalty_weight=1.0,
            ema_decay=0.999,
            generator=DENSE_GENERATOR,
            discriminator=DENSE_DISCRIMINATOR,
            optimizer=Optimizer(learning_rate=2e-4, b1=0.0, b2=0.99),
        ),
        data="digits",
        steps=10_000,
        report_every=200,
        sample_every=2_000,
    ),
    # Hinge loss, spectral normalisation and a projection of the label (Miyato et al. 2018,
    # https://arxiv.org/abs/1802.05957; Miyato & Koyama 2018, https://arxiv.org/abs/1802.05637).
    #
    # python -m experiments train sngan_digits --seeds 0 1 2
    # Samples of the class that is asked for; three seeds in 3 minutes on a busy core.
    "sngan_digits": Experiment(
        GAN(
            latent=32,
            loss="hinge",
            spectral_norm=True,
            conditioning="projection",
            classes=10,
            generator=DENSE_GENERATOR,
            discriminator=DENSE_DISCRIMINATOR,
            optimizer=Optimizer(learning_rate=2e-4, b1=0.0, b2=0.9),
        ),
        data="digits",
        steps=10_000,
        report_every=200,
        sample_every=2_000,
    ),
}
