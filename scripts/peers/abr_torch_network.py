"""The network of `jaxtrain.models.abr` in plain PyTorch: torch's own attention, convolutions, norms and FFT. See `abr_torch.py`.

Modules are named as there, so that `load` finds its arrays; stacked layers are unstacked. Activations are (B, n, C).
"""

# pyright: reportMissingImports=false

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

SAMPLES, CLASSES, STATICS, HEAD, STEP_WIDTH, END_KERNEL = 200, 5, 4, 64, 256, 7


@dataclass(frozen=True)
class Sizes:
    """As in `jaxtrain.models.abr.Config`. convolution: how S4 runs through a signal, fft or toeplitz."""

    objective: str = "predict"
    channels: tuple[int, ...] = (64, 128, 256, 512)
    res_blocks: int = 2
    s4_layers: int = 2
    s4_state: int = 64
    transformer_layers: int = 3
    bottleneck_layers: int = 2
    head_width: int = 32
    ffn_factor: int = 4
    cond_width: int = 128
    dropout: float = 0.1
    film_dropout: float = 0.15
    convolution: str = "fft"


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, taps: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, taps, stride, padding=(taps - 1) // 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x.transpose(1, 2)).transpose(1, 2)


class ResBlock(nn.Module):
    def __init__(self, channels: int, taps: int, dropout: float):
        super().__init__()
        self.norm_in, self.norm_out = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.conv_in, self.conv_out = Conv(channels, channels, taps), Conv(channels, channels, taps)
        self.dropout = nn.Dropout(dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.conv_out(self.dropout(F.gelu(self.norm_out(self.conv_in(F.gelu(self.norm_in(h)))))))


class FiLM(nn.Module):
    def __init__(self, condition: int, channels: int):
        super().__init__()
        self.scale_shift = nn.Linear(condition, 2 * channels)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        gamma, beta = self.scale_shift(condition)[:, None].chunk(2, -1)
        return h * (1 + gamma) + beta


class S4D(nn.Module):
    def __init__(self, channels: int, states: int, convolution: str):
        super().__init__()
        pairs = states // 2
        self.convolution = convolution
        self.log_dt = nn.Parameter(torch.empty(channels).uniform_(math.log(1e-3), math.log(1e-1)))
        self.log_a = nn.Parameter(torch.full((channels, pairs), math.log(0.5)))
        self.b = nn.Parameter((math.pi * torch.arange(pairs)).expand(channels, pairs).clone())
        self.c = nn.Parameter(math.sqrt(0.5) * torch.randn(2, channels, pairs, 2))
        self.d = nn.Parameter(torch.randn(channels))

    def circle(self, n: int) -> Tensor:
        """(C, 2 n): both kernels round one circle."""
        a = torch.complex(-self.log_a.exp(), self.b)
        step = self.log_dt.exp()[:, None] * a
        weights = torch.view_as_complex(self.c) * (step.exp() - 1) / a
        powers = (step[..., None] * torch.arange(n)).exp()
        forward, backward = 2 * torch.einsum("dcp,cpl->dcl", weights, powers).real
        return torch.cat([forward, backward.flip(-1)], -1)

    def forward(self, u: Tensor) -> Tensor:
        n = u.shape[1]
        circle = self.circle(n)
        if self.convolution == "fft":
            spectrum = torch.fft.rfft(circle).T
            y = torch.fft.irfft(torch.fft.rfft(u, 2 * n, dim=1) * spectrum, 2 * n, dim=1)[:, :n]
        else:
            distance = (torch.arange(n)[:, None] - torch.arange(n)) % (2 * n)
            y = torch.einsum("cij,bjc->bic", circle[:, distance], u)
        return y + u * self.d


class S4DLayer(nn.Module):
    def __init__(self, channels: int, sizes: Sizes):
        super().__init__()
        self.norm, self.ssm = nn.LayerNorm(channels), S4D(channels, sizes.s4_state, sizes.convolution)
        self.output, self.dropout = nn.Linear(channels, 2 * channels), nn.Dropout(sizes.dropout)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.dropout(F.glu(self.output(self.dropout(F.gelu(self.ssm(self.norm(h)))))))


class Attention(nn.Module):
    def __init__(self, width: int, head: int, stride: int, cross: bool):
        super().__init__()
        self.head, self.stride, self.cross = head, stride, cross
        if cross:
            self.query, self.memory = nn.Linear(width, width, bias=False), nn.Linear(width, 2 * width, bias=False)
        else:
            self.inputs = nn.Linear(width, 3 * width, bias=False)
        self.output = nn.Linear(width, width)

    def rotated(self, x: Tensor, stride: int) -> Tensor:
        """(B, H, n, d) turned by the time of each row."""
        n, half = x.shape[2], self.head // 2
        turn = (((torch.arange(n) + 0.5) * stride - 0.5)[:, None] * 0.5) * 1000.0 ** (-2 * torch.arange(half) / self.head)
        a, b = x.chunk(2, -1)
        return torch.cat([a * turn.cos() - b * turn.sin(), a * turn.sin() + b * turn.cos()], -1)

    def forward(self, x: Tensor, memory: Tensor | None = None) -> Tensor:
        q, k, v = (self.query(x), *self.memory(memory).chunk(2, -1)) if self.cross else self.inputs(x).chunk(3, -1)
        q, k, v = (part.unflatten(-1, (-1, self.head)).transpose(1, 2) for part in (q, k, v))
        q, k = self.rotated(q, self.stride), self.rotated(k, self.stride * (2 if self.cross else 1))
        return self.output(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int, sizes: Sizes):
        super().__init__()
        self.expand, self.contract = nn.Linear(width, sizes.ffn_factor * width), nn.Linear(sizes.ffn_factor * width, width)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, x: Tensor) -> Tensor:
        return self.dropout(self.contract(self.dropout(F.gelu(self.expand(x)))))


class TransformerLayer(nn.Module):
    def __init__(self, width: int, stride: int, sizes: Sizes, cross: bool):
        super().__init__()
        self.norm_attention, self.attention = nn.LayerNorm(width), Attention(width, sizes.head_width, stride, False)
        if cross:
            self.norm_cross, self.cross = nn.LayerNorm(width), Attention(width, sizes.head_width, stride, True)
        self.norm_ffn, self.ffn = nn.LayerNorm(width), FeedForward(width, sizes)
        self.dropout = nn.Dropout(sizes.dropout)

    def forward(self, h: Tensor, memory: Tensor | None = None) -> Tensor:
        h = h + self.dropout(self.attention(self.norm_attention(h)))
        if memory is not None:
            h = h + self.dropout(self.cross(self.norm_cross(h), memory))
        return h + self.ffn(self.norm_ffn(h))


class EncoderLevel(nn.Module):
    def __init__(self, inputs: int, channels: int, sizes: Sizes):
        super().__init__()
        self.widen = nn.Linear(inputs, channels) if inputs != channels else nn.Identity()
        self.blocks = nn.ModuleList(ResBlock(channels, 3, sizes.dropout) for _ in range(sizes.res_blocks))
        self.down = Conv(channels, channels, 4, 2)
        self.state_spaces = nn.ModuleList(S4DLayer(channels, sizes) for _ in range(sizes.s4_layers))
        self.film, self.norm = FiLM(sizes.cond_width, channels), nn.LayerNorm(channels)

    def forward(self, h: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        skip = self.widen(h)
        for block in self.blocks:
            skip = block(skip)
        h = self.down(skip)
        for layer in self.state_spaces:
            h = layer(h)
        return skip, self.norm(self.film(h, condition))


class Bottleneck(nn.Module):
    def __init__(self, channels: int, sizes: Sizes):
        super().__init__()
        self.state_spaces = nn.ModuleList([S4DLayer(channels, sizes)])
        stride = 2 ** len(sizes.channels)
        self.layers = nn.ModuleList(TransformerLayer(channels, stride, sizes, False) for _ in range(sizes.bottleneck_layers))
        self.norm_layers, self.norm = nn.LayerNorm(channels), nn.LayerNorm(channels)
        self.merge_in, self.merge_out = nn.Linear(2 * channels, 2 * channels), nn.Linear(2 * channels, channels)
        self.film, self.dropout = FiLM(sizes.cond_width, channels), nn.Dropout(sizes.dropout)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        t = h = self.state_spaces[0](h)
        for layer in self.layers:
            t = layer(t)
        h = h + self.merge_out(self.dropout(F.gelu(self.merge_in(torch.cat([h, self.norm_layers(t)], -1)))))
        return self.norm(self.film(h, condition))


class DecoderLevel(nn.Module):
    def __init__(self, inputs: int, channels: int, stride: int, sizes: Sizes):
        super().__init__()
        self.join = Conv(inputs + channels, channels, 3)
        self.layers = nn.ModuleList(TransformerLayer(channels, stride, sizes, True) for _ in range(sizes.transformer_layers))
        self.film, self.block = FiLM(sizes.cond_width, channels), ResBlock(channels, 3, sizes.dropout)

    def forward(self, h: Tensor, skip: Tensor, memory: Tensor, condition: Tensor) -> Tensor:
        doubled = F.interpolate(h.transpose(1, 2), scale_factor=2, mode="linear", align_corners=False).transpose(1, 2)
        h = self.join(torch.cat([doubled, skip], -1))
        for layer in self.layers:
            h = layer(h, memory)
        return self.block(self.film(h, condition))


class Perceptron(nn.Module):
    def __init__(self, inputs: int, width: int):
        super().__init__()
        self.inner, self.outer = nn.Linear(inputs, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(F.gelu(self.inner(x)))


class Condition(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        self.rate, self.generate = sizes.film_dropout, sizes.objective == "generate"
        self.statics = Perceptron(2 * STATICS, sizes.cond_width)
        self.null = nn.Parameter(0.02 * torch.randn(sizes.cond_width))
        self.always = Perceptron(STEP_WIDTH if self.generate else 2, sizes.cond_width)
        if self.generate:
            self.classes = nn.Parameter(0.02 * torch.randn(CLASSES + 1, sizes.cond_width))

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        known = inputs["statics_ok"]
        e = self.statics(torch.cat([inputs["statics"] * known, known.float()], -1))
        if self.generate:
            label = inputs["label"]
            e = e + self.classes[torch.where((label >= 0) & (label < CLASSES), label, CLASSES)]
            half = STEP_WIDTH // 2
            angle = inputs["t"][:, None] * torch.exp(-math.log(10_000.0) / half * torch.arange(half))
            always = torch.cat([angle.sin(), angle.cos()], -1)
        else:
            always = inputs["scale"]
        null = inputs["null"] | (torch.rand(len(e)) < self.rate if self.training else False)
        return F.gelu(torch.where(null[:, None], self.null, e) + self.always(always))


class Reader(nn.Module):
    def __init__(self, channels: int, outputs: int | None, dropout: float):
        super().__init__()
        self.score_in, self.score_out = nn.Linear(channels, channels // 2), nn.Linear(channels // 2, 1, bias=False)
        self.inner, self.dropout = nn.Linear(channels + HEAD, HEAD), nn.Dropout(dropout)
        self.output = nn.Linear(HEAD, outputs) if outputs else nn.Identity()

    def forward(self, f: Tensor, b: Tensor) -> Tensor:
        pool = (self.score_out(self.score_in(f).tanh()).softmax(1) * f).sum(1)
        return self.output(self.dropout(F.gelu(self.inner(torch.cat([pool, b], -1)))))


class Peak(nn.Module):
    def __init__(self, channels: int):
        super().__init__()
        self.existence, self.latency, self.amplitude = nn.Linear(HEAD, 1), nn.Linear(HEAD, 2), nn.Linear(HEAD, 2)
        self.place, self.mix = nn.Linear(channels, 1, bias=False), nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v: Tensor, f: Tensor, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        p, latency, amplitude = self.place(f)[..., 0].softmax(1), self.latency(v), self.amplitude(v)
        mean = self.mix[0] * (p * x).sum(1) + self.mix[1] * (p * y).sum(1)
        found = {"existence": self.existence(v)[:, 0], "latency_ms": (p * 0.05 * torch.arange(SAMPLES)).sum(1) + latency[:, 0]}
        return found | {"latency_ln_sd": latency[:, 1], "amplitude_z": mean + amplitude[:, 0], "amplitude_ln_sd": amplitude[:, 1]}


class Heads(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        channels = sizes.channels[0]
        self.signal = nn.Linear(channels, 1)
        if sizes.objective == "predict":
            self.bottom, self.peak = nn.Linear(sizes.channels[-1], HEAD), Peak(channels)
            outputs = {"peak": None, "class": CLASSES, "threshold": 2}
            self.readers = nn.ModuleDict({name: Reader(channels, width, sizes.dropout) for name, width in outputs.items()})

    def forward(self, x: Tensor, f: Tensor, bottleneck: Tensor) -> dict[str, Tensor]:
        y = self.signal(f)[..., 0]
        if not hasattr(self, "readers"):
            return {"v": y}
        b = self.bottom(bottleneck.mean(1))
        read = {name: reader(f, b) for name, reader in self.readers.items()}
        found = {"signal": y, "class_logits": read["class"], **self.peak(read["peak"], f, x, y)}
        return found | {"threshold_z": read["threshold"][:, 0], "threshold_ln_sd": read["threshold"][:, 1]}


class Network(nn.Module):
    def __init__(self, sizes: Sizes):
        super().__init__()
        channels, levels = sizes.channels, len(sizes.channels)
        self.pad = (-(-SAMPLES // 2**levels) * 2**levels - SAMPLES) // 2
        self.condition = Condition(sizes)
        self.stem, self.stem_block = Conv(1, channels[0], END_KERNEL), ResBlock(channels[0], END_KERNEL, sizes.dropout)
        inputs = (channels[0], *channels, channels[-1])
        self.encoder = nn.ModuleList(EncoderLevel(inputs[i], channels[i], sizes) for i in range(levels))
        self.bottleneck = Bottleneck(channels[-1], sizes)
        self.decoder = nn.ModuleList(DecoderLevel(inputs[i + 2], channels[i], 2**i, sizes) for i in reversed(range(levels)))
        self.output_block, self.output_norm = ResBlock(channels[0], END_KERNEL, sizes.dropout), nn.LayerNorm(channels[0])
        self.heads = Heads(sizes)

    def forward(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        condition = self.condition(inputs)
        h = self.stem_block(self.stem(F.pad(inputs["x"], (self.pad, self.pad))[..., None]))
        kept = []
        for level in self.encoder:
            skip, h = level(h, condition)
            kept.append((skip, h))
        h = bottleneck = self.bottleneck(h, condition)
        for level in self.decoder:
            h = level(h, *kept.pop(), condition)
        h = self.output_norm(self.output_block(h))
        return self.heads(inputs["x"], h[:, self.pad : self.pad + SAMPLES], bottleneck)


def load(network: Network, arrays: Mapping[str, np.ndarray]) -> None:
    """Take the weights of `jaxtrain.models.abr.Network` by their paths ("encoder/0/blocks/layer/conv_in/kernel"), every one of them."""
    state: dict[str, Tensor] = {}
    for path, value in arrays.items():
        before, stacked, after = path.partition("/layer/")
        for i, one in enumerate(value) if stacked else [(0, value)]:
            name = f"{before}/{i}/{after}" if stacked else path
            state |= _torch_array(name.replace("/", "."), torch.from_numpy(np.array(one)))
    network.load_state_dict(state)


def _torch_array(name: str, value: Tensor) -> dict[str, Tensor]:
    convolution = name.split(".")[-2] in ("stem", "conv_in", "conv_out", "down", "join") if "." in name else False
    owner, _, leaf = name.rpartition(".")
    owner = f"{owner}.conv" if convolution else owner
    if leaf == "kernel":
        return {f"{owner}.weight": value.permute(2, 1, 0) if convolution else value.T}
    return {f"{owner}.{'weight' if leaf == 'scale' else leaf}": value}
