"""PyTorch networks and training steps of the same layers as four registered experiments.

Each function takes the model of the experiment, and returns a `Peer` of the same widths, learning
rate and moving average. It is written as PyTorch users write it, in eager mode. Importing this
module needs PyTorch.
"""

from __future__ import annotations

import importlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from gen.models.autoregressive.pixels import taps

torch: Any = importlib.import_module("torch")  # optional: a type checker may not find it
nn, F = torch.nn, torch.nn.functional


class Peer(NamedTuple):
    """A network under training."""

    parameters: int  # their number
    step: Callable[[Any], None]  # takes one optimiser step on images [B, 1, H, W] in [0, 1]


def peer(modules: Sequence[Any], step: Callable[[Any], None]) -> Peer:
    """Return the peer whose step trains some modules."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return Peer(sum(parameter.numel() for parameter in parameters), step)


def moving_average(parameters: Sequence[Any], decay: float) -> Callable[[], None]:
    """Return a function that moves the exponential moving average of the parameters."""
    average = [parameter.detach().clone() for parameter in parameters]

    def move():
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1 - decay)

    return move


def adam(modules: Sequence[Any], learning_rate: float, fused: bool) -> Any:
    """Return Adam over the parameters of some modules.

    Args:
      modules: the modules.
      learning_rate: the step size.
      fused: whether to use its fastest form.
    """
    parameters = [parameter for module in modules for parameter in module.parameters()]
    return torch.optim.Adam(parameters, learning_rate, fused=fused)


def descend(optimizer: Any, loss: Any) -> None:
    """Take one optimiser step on a loss."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def mlp(widths: Sequence[int], activation: Any, dropout: float = 0.0) -> list[Any]:
    """Return the layers of an MLP: linear layers, each followed by a nonlinearity and dropout.

    Args:
      widths: the numbers of inputs and of the outputs of each layer.
      activation: the class of the nonlinearity.
      dropout: the share of units dropped (0: no dropout).
    """
    layers = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), activation()]
        if dropout:
            layers.append(nn.Dropout(dropout))
    return layers


def vae(model: Any, fused: bool) -> Peer:
    """Return the VAE of `vae_mnist`, whose pixels are binarised dynamically."""
    pixels, up, down = math.prod(model.shape), model.encoder.hidden, model.decoder.hidden
    encoder = nn.Sequential(nn.Flatten(), *mlp((pixels, *up), nn.ELU))
    mean, logvar = (nn.Linear(up[-1], model.latent) for _ in range(2))
    decoder = nn.Sequential(*mlp((model.latent, *down), nn.ELU), nn.Linear(down[-1], pixels))
    modules = (encoder, mean, logvar, decoder)
    optimizer = adam(modules, model.optimizer.learning_rate, fused)

    def step(x):
        x = torch.bernoulli(x).flatten(1)
        h = encoder(x)
        m, v = mean(h), logvar(h)
        z = m + torch.exp(0.5 * v) * torch.randn_like(m)
        nll = F.binary_cross_entropy_with_logits(decoder(z), x, reduction="sum") / len(x)
        kl = 0.5 * (m**2 + v.exp() - 1 - v).sum(1).mean()
        descend(optimizer, nll + kl)

    return peer(modules, step)


def gan(model: Any, fused: bool) -> Peer:
    """Return the GAN of `gan_mnist`: the discriminator's step, then the generator's."""
    pixels, up, down = math.prod(model.shape), model.generator.hidden, model.discriminator.hidden
    generator = nn.Sequential(
        *mlp((model.latent, *up), nn.ReLU), nn.Linear(up[-1], pixels), nn.Tanh()
    )
    layers = mlp((pixels, *down), nn.ReLU, model.discriminator.dropout)
    discriminator = nn.Sequential(*layers, nn.Linear(down[-1], 1))
    of_generator, of_discriminator = (
        adam((player,), model.optimizer.learning_rate, fused)
        for player in (generator, discriminator)
    )

    def step(x):
        x = 2 * x.flatten(1) - 1
        with torch.no_grad():
            fake = generator(torch.randn(len(x), model.latent))
        loss = F.softplus(-discriminator(x)).mean() + F.softplus(discriminator(fake)).mean()
        descend(of_discriminator, loss)
        discriminator.requires_grad_(False)  # the generator's step needs no gradient there
        fake = generator(torch.randn(len(x), model.latent))
        descend(of_generator, F.softplus(-discriminator(fake)).mean())
        discriminator.requires_grad_(True)

    return peer((generator, discriminator), step)


class CausalConv(nn.Module):
    """A masked convolution without the rows and columns that the mask hides altogether."""

    def __init__(self, channels: int, features: int, kind: Any, size: int):
        super().__init__()
        mask = torch.tensor(taps(kind, size))
        rows, side = len(mask), size // 2
        self.height, self.width = int(mask.any(1).sum()), int(mask.any(0).sum())
        self.register_buffer("mask", mask)
        scale = math.sqrt(2 / (channels * float(mask.sum())))
        self.weight = nn.Parameter(scale * torch.randn(features, channels, *mask.shape))
        self.bias = nn.Parameter(torch.zeros(features))
        self.around = (side, side + self.width - size, rows - 1, self.height - rows)

    def forward(self, x):
        kernel = (self.weight * self.mask)[:, :, : self.height, : self.width]
        return F.conv2d(F.pad(x, self.around), kernel, self.bias)


def gate(a: Any) -> Any:
    """Return tanh(a₁) ⊙ σ(a₂) of the two halves of the channels."""
    a, b = a.chunk(2, 1)
    return torch.tanh(a) * torch.sigmoid(b)


class GatedPixelCNN(nn.Module):
    """The gated PixelCNN of one channel, without dropout."""

    def __init__(self, features: int, layers: int, size: int):
        super().__init__()
        wide, later = 2 * features, range(layers - 1)
        self.vertical = nn.ModuleList(
            [
                CausalConv(2, wide, "above", 7),
                *(CausalConv(features, wide, "upto", size) for _ in later),
            ]
        )
        self.horizontal = nn.ModuleList(
            [
                CausalConv(2, wide, "left", 7),
                *(CausalConv(features, wide, "left and self", size) for _ in later),
            ]
        )
        self.link = nn.ModuleList(nn.Conv2d(wide, wide, 1) for _ in range(layers))
        self.out = nn.ModuleList(nn.Conv2d(features, features, 1) for _ in range(layers))
        self.last = nn.Sequential(
            nn.ReLU(), nn.Conv2d(features, wide, 1), nn.ReLU(), nn.Conv2d(wide, 1, 1)
        )

    def forward(self, x):
        framed = torch.cat([x, torch.ones_like(x)], 1)
        v, h = framed, None
        layers = zip(self.vertical, self.horizontal, self.link, self.out, strict=True)
        for vertical, horizontal, link, out in layers:
            v = vertical(v if h is None else gate(v))
            change = out(gate(horizontal(framed if h is None else h) + link(v)))
            h = change if h is None else h + change
        return self.last(h)


def gated_pixelcnn(model: Any, fused: bool) -> Peer:
    """Return the training of `gated_pixelcnn_binarized_mnist`."""
    net = GatedPixelCNN(model.net.features, model.net.layers, model.net.size)
    optimizer = adam((net,), model.optimizer.learning_rate, fused)
    move_average = moving_average(list(net.parameters()), model.ema_decay)

    def step(x):
        nll = F.binary_cross_entropy_with_logits(net(x), x, reduction="sum") / len(x)
        descend(optimizer, nll)
        move_average()

    return peer((net,), step)


def group_norm(channels: int) -> Any:
    """Return group normalisation in groups of about 16 channels, with Flax's ε."""
    return nn.GroupNorm(math.gcd(channels, max(1, channels // 16)), channels, eps=1e-6)


class Block(nn.Module):
    """A residual block of two convolutions, the second of which the condition modulates."""

    def __init__(self, channels: int, features: int, condition: int):
        super().__init__()
        self.first = nn.Sequential(
            group_norm(channels), nn.SiLU(), nn.Conv2d(channels, features, 3, padding=1)
        )
        self.norm, self.modulate = group_norm(features), nn.Linear(condition, 2 * features)
        self.second = nn.Conv2d(features, features, 3, padding=1)
        same = channels == features
        self.skip = nn.Identity() if same else nn.Conv2d(channels, features, 1)

    def forward(self, x, condition):
        scale, shift = self.modulate(condition)[:, :, None, None].chunk(2, 1)
        h = F.silu(self.norm(self.first(x)) * (1 + scale) + shift)
        return self.second(h) + self.skip(x)


class Attention(nn.Module):
    """Self-attention over all positions, in heads of 32 channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.heads = channels // 32
        self.norm = group_norm(channels)
        self.inputs, self.out = nn.Linear(channels, 3 * channels), nn.Linear(channels, channels)

    def forward(self, x):
        positions = self.norm(x).flatten(2).transpose(1, 2)
        split = self.inputs(positions).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)
        return x + self.out(out).transpose(1, 2).reshape(x.shape)


class UNet(nn.Module):
    """The U-Net of one resolution, on patches of pixels."""

    def __init__(self, features: int, blocks: int, patch: int):
        super().__init__()
        width = 4 * features
        self.patch = patch
        self.condition = nn.Sequential(
            nn.Linear(64, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU()
        )
        frequencies = torch.exp(-math.log(10_000) * torch.arange(32) / 31)
        self.register_buffer("frequencies", frequencies)
        self.inputs = nn.Conv2d(patch**2, features, 3, padding=1)
        self.down = nn.ModuleList(Block(features, features, width) for _ in range(blocks))
        self.middle = nn.ModuleList(Block(features, features, width) for _ in range(2))
        self.attention = Attention(features)
        self.up = nn.ModuleList(Block(2 * features, features, width) for _ in range(blocks + 1))
        self.out = nn.Sequential(group_norm(features), nn.SiLU(), nn.Conv2d(features, patch**2, 1))

    def forward(self, x, t):
        angle = 1000 * t[:, None] * self.frequencies[None]
        condition = self.condition(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.inputs(F.pixel_unshuffle(x, self.patch))
        kept = [h]
        for block in self.down:
            kept.append(h := block(h, condition))
        h = self.attention(self.middle[0](h, condition))
        h = self.middle[1](h, condition)
        for block, skip in zip(self.up, reversed(kept), strict=True):
            h = block(torch.cat([h, skip], 1), condition)
        return F.pixel_shuffle(self.out(h), self.patch)


def diffusion(model: Any, fused: bool) -> Peer:
    """Return the training of `diffusion_mnist_small`, with the moving average of the parameters."""
    (features,) = model.net.channels
    net = UNet(features, model.net.blocks, model.net.patch)
    optimizer = adam((net,), model.optimizer.learning_rate, fused)
    move_average = moving_average(list(net.parameters()), model.ema_decay)
    ends = model.log_snr_max, model.log_snr_min
    first, last = (math.atan(math.exp(-0.5 * log_snr)) for log_snr in ends)

    def step(x):
        x, t = 2 * x - 1, (torch.randperm(len(x)) + torch.rand(len(x))) / len(x)
        angle = first + (last - first) * t  # of the cosine schedule: α = cos, σ = sin
        alpha, sigma = angle.cos()[:, None, None, None], angle.sin()[:, None, None, None]
        noise = torch.randn_like(x)
        out = net(alpha * x + sigma * noise, t)
        descend(optimizer, F.mse_loss(out, alpha * noise - sigma * x))
        move_average()

    return peer((net,), step)


PEERS: dict[str, Callable[[Any, bool], Peer]] = {
    "vae_mnist": vae,
    "gan_mnist": gan,
    "gated_pixelcnn_binarized_mnist": gated_pixelcnn,
    "diffusion_mnist_small": diffusion,
}
"""The peers by the name of the experiment; each takes its model, and whether Adam is fused."""
