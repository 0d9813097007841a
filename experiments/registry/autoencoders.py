"""Autoencoders: plain, convolutional, denoising, sparse, contractive and stacked."""

from experiments.experiment import Experiment
from gen.models.autoencoder import Autoencoder, StackedAutoencoder
from gen.nets import MLP, ConvDecoder, ConvEncoder
from gen.optimize import Optimizer

TEXTURE_AUTOENCODER = Autoencoder(
    encoder=ConvEncoder((16, 32), (64,)),
    decoder=ConvDecoder((), (32, 16)),
    output="sigmoid",
    optimizer=Optimizer(learning_rate=2e-3, schedule="cosine"),
)

EXPERIMENTS = {
    # python -m experiments train ae_mnist --seeds 0 1 2
    # Test error 0.0182 per pixel; three seeds in 2 minutes, beside other work.
    "ae_mnist": Experiment(
        Autoencoder(),  # the textbook's networks
        data="mnist",
        batch_size=256,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # python -m experiments train ae_digits --seeds 0 1 2
    # Test error 0.035 per pixel, more where pixels die; three seeds in 3 s on 2 cores.
    "ae_digits": Experiment(
        Autoencoder(encoder=MLP((48, 24), "relu"), decoder=MLP((48,), "relu")),
        data="digits",
        batch_size=64,
        steps=1_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Convolutional, with a code of the same length as the textbook's.
    #
    # python -m experiments train ae_conv_mnist --seeds 0 1 2
    # Squared error 0.0034; three seeds in 7 minutes on 2 busy cores.
    "ae_conv_mnist": Experiment(
        Autoencoder(
            encoder=ConvEncoder((16, 32), (128,)),
            decoder=ConvDecoder((), (32, 16)),
            output="sigmoid",
            optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
        ),
        data="mnist",
        steps=5_500,  # 10 epochs
        report_every=110,
        checkpoint_every=1_100,
    ),
    # Denoising, with tied weights, as in Vincent et al. 2008: its filters are strokes.
    #
    # python -m experiments train dae_mnist --seeds 0 1 2
    # Error rate 3.7 % of a linear classifier on the code, 1.6 % after fine-tuning; three seeds in
    # 3 minutes on 2 busy cores.
    "dae_mnist": Experiment(
        Autoencoder(
            encoder=MLP((500,), "sigmoid"),
            decoder=MLP(()),
            output="sigmoid",
            loss="cross_entropy",
            noise="masking",
            corruption=0.3,
            tied=True,
            optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
        ),
        data="mnist",
        steps=11_000,  # 20 epochs
        report_every=110,
        checkpoint_every=1_100,
        steps_per_dispatch=50,
        probe=True,
    ),
    # k-sparse, as in Makhzani & Frey 2014 with k = 25.
    #
    # python -m experiments train sae_mnist --seeds 0 1 2
    # Error rate 2.3 % of a linear classifier on the code. About a third of the units are
    # never among the 25, since k does not fall during training. Three seeds in 11 minutes on 2
    # busy cores.
    "sae_mnist": Experiment(
        Autoencoder(
            encoder=MLP((1_000,), "linear"),
            decoder=MLP(()),
            output="linear",
            sparsity="top_k",
            active=25,
            tied=True,
            optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
        ),
        data="mnist",
        steps=11_000,  # 20 epochs
        report_every=110,
        checkpoint_every=1_100,
        steps_per_dispatch=50,
        probe=True,
    ),
    # Stacked and denoising, as in Vincent et al. 2010, then fine-tuned on the labels. The recipe is
    # the tutorial's of https://github.com/lisa-lab/DeepLearningTutorials: 1.30 % test error. The
    # tutorial fine-tunes by stochastic gradient descent without dropout; this is Adam, with dropout
    # rates selected on the validation split. Several --seeds compute all three layers in each step.
    #
    # python -m experiments train sda_mnist
    # Error rate 1.12 % after fine-tuning; 5 minutes of pretraining on a busy core, and about 20 of
    # fine-tuning in `evaluate`. The default of 40 rounds gives 1.28 %.
    "sda_mnist": Experiment(
        StackedAutoencoder(
            hidden=(1_000, 1_000, 1_000),
            corruptions=(0.1, 0.2, 0.3),
            pretraining=5_500,  # 10 epochs for each layer
        ),
        data="mnist",
        steps=16_500,
        report_every=275,
        checkpoint_every=2_750,
        steps_per_dispatch=50,
        probe=True,
        fine_tuning_rounds=80,
    ),
    # Convolutional, on salt-and-pepper noise.
    #
    # python -m experiments train ae_conv_digits --seeds 0 1 2
    # Squared error 0.0196; three seeds in a minute on a busy core.
    "ae_conv_digits": Experiment(
        Autoencoder(
            encoder=ConvEncoder((8, 16), (24,)),
            decoder=ConvDecoder((), (16, 8)),
            output="sigmoid",
            noise="salt_and_pepper",
            corruption=0.1,
            optimizer=Optimizer(learning_rate=3e-3, schedule="cosine"),
        ),
        data="digits",
        batch_size=64,
        steps=1_500,
        checkpoint_every=500,
    ),
    # Denoising, with tied weights.
    #
    # python -m experiments train dae_digits --seeds 0 1 2
    # Error rate 3.6 % of a linear classifier on the code, 2.8 % after fine-tuning; three seeds in
    # 17 s on a busy core.
    "dae_digits": Experiment(
        Autoencoder(
            encoder=MLP((64,), "sigmoid"),
            decoder=MLP(()),
            output="sigmoid",
            loss="cross_entropy",
            noise="masking",
            corruption=0.3,
            tied=True,
            optimizer=Optimizer(learning_rate=3e-3, schedule="cosine"),
        ),
        data="digits",
        batch_size=64,
        steps=3_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
        probe=True,
    ),
    # k-sparse, with tied weights.
    #
    # python -m experiments train sae_digits --seeds 0 1 2
    # Squared error 0.0119; three seeds in 18 s on a busy core.
    "sae_digits": Experiment(
        Autoencoder(
            encoder=MLP((100,), "linear"),
            decoder=MLP(()),
            output="linear",
            sparsity="top_k",
            active=8,
            tied=True,
            optimizer=Optimizer(learning_rate=3e-3, schedule="cosine"),
        ),
        data="digits",
        batch_size=64,
        steps=3_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Contractive, and sparse by the KL of the units' mean activity.
    #
    # python -m experiments train cae_digits --seeds 0 1 2
    # Squared error 0.0119; three seeds in 8 s on one core.
    "cae_digits": Experiment(
        Autoencoder(
            encoder=MLP((64,), "sigmoid"),
            decoder=MLP(()),
            output="sigmoid",
            sparsity="kl",
            sparsity_weight=1e-3,
            sparsity_target=0.1,
            contraction_weight=1e-3,
            tied=True,
            optimizer=Optimizer(learning_rate=3e-3, schedule="cosine"),
        ),
        data="digits",
        batch_size=64,
        steps=3_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
    # Stacked and denoising, then fine-tuned on the labels.
    #
    # python -m experiments train sda_digits --seeds 0 1 2
    # Error rate 3.9 % after fine-tuning; three seeds in 53 s on a busy core.
    "sda_digits": Experiment(
        StackedAutoencoder(
            hidden=(100, 100, 100),
            corruptions=(0.1, 0.2, 0.3),
            pretraining=1_000,
        ),
        data="digits",
        batch_size=64,
        steps=3_000,
        checkpoint_every=500,
        steps_per_dispatch=50,
        probe=True,
    ),
    # Patches of a texture without defects; `anomaly` locates defects in the test patches.
    #
    # python -m experiments train ae_textures --seeds 0 1 2
    # AUROC 0.960 of pixels after smoothing, 0.997 of images, by PCA 0.970 and 0.999; three seeds in
    # 6 minutes on a busy core.
    "ae_textures": Experiment(
        TEXTURE_AUTOENCODER,
        data="textures",
        steps=1_200,  # 30 epochs
        report_every=100,
        checkpoint_every=600,
    ),
    # The same on patches of a photograph of bricks.
    #
    # python -m experiments train ae_textures_brick --seeds 0 1 2
    # AUROC 0.964 of pixels after smoothing, 0.973 of images, by PCA 0.951 and 0.967; three seeds in
    # 5 minutes on a busy core.
    "ae_textures_brick": Experiment(
        TEXTURE_AUTOENCODER,
        data="textures_brick",
        steps=1_200,  # 30 epochs
        report_every=100,
        checkpoint_every=600,
    ),
    # Images of one class are normal, and the other classes are anomalies:
    # `protocol one_class_mnist ae_one_class` trains it on each class. A code of 16 or of 64 units
    # and noise at the input are worse on the class 2.
    #
    # python -m experiments train ae_one_class
    # Mean AUROC 96.5 % over the classes of MNIST, where PCA has 95.5 %, and 91.3 % over the classes
    # of Fashion-MNIST, where PCA has 90.5 % and the nearest neighbour 92.3 %; five seeds of all
    # classes in 9 to 15 minutes on a busy core.
    "ae_one_class": Experiment(
        Autoencoder(
            encoder=MLP((256, 32), "relu"),
            decoder=MLP((256,), "relu"),
            output="sigmoid",
            optimizer=Optimizer(learning_rate=1e-3, schedule="cosine"),
        ),
        data="mnist_class_2",
        steps=2_500,
        report_every=100,
        checkpoint_every=500,
        steps_per_dispatch=50,
    ),
}
