"""Generative adversarial networks: every variety is a field of `GAN`.

- `losses`: the loss pairs of discriminator and generator, on logits.
- `regularizers`: gradient penalties, spectral normalisation and weight clipping.
- `networks`: the DCGAN pair, heads for labels and codes, and packs of examples.
- `information`: InfoGAN's codes and its bound on their mutual information with the image.
- `hints`: faults of training that its metrics show.
- `model`: `GAN` itself.
"""

from gen.models.gan.model import GAN, Player, State
from gen.models.gan.networks import DCGANDiscriminator, DCGANGenerator

__all__ = ["GAN", "DCGANDiscriminator", "DCGANGenerator", "Player", "State"]
