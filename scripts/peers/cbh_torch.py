"""The network for cloud base height in PyTorch, eager, as a yardstick for the speed of `cbh`.

The reference graph under the names of the earlier program, and the options that the default takes instead. Frames, as there, one after
another with --frames each; with --frames together as one batch, which is faster in PyTorch too.

    python scripts/peers/cbh_torch.py --check RECORDED.npz                                recorded weights, outputs and gradients
    python scripts/peers/cbh_torch.py --bench --batch 20 --height 32 --width 48           one JSON line per mode

Needs torch; without it it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    import torch.utils.checkpoint
    from allocator import keep_freed_memory, peak_memory_bytes
    from torch import Tensor, nn
    from torch.nn import functional as F
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"cbh_torch.py: {sys.executable} lacks {missing.name}; pip install numpy torch", file=sys.stderr)
    sys.exit(2)

GROUPS = 8


class Film(nn.Module):
    """Gain and offset of every channel from the sun's angles."""

    def __init__(self, sun: int, hidden: int, channels: int, identity: bool) -> None:
        super().__init__()
        self.film_mlp = nn.Sequential(nn.Linear(sun, hidden), nn.ReLU(), nn.Linear(hidden, 2 * channels))
        self.identity = identity

    def forward(self, x: Tensor, sun: Tensor) -> Tensor:
        gamma, beta = self.film_mlp(sun).chunk(2, dim=1)
        gain = 1 + gamma if self.identity else gamma
        return gain[:, :, None, None] * x + beta[:, :, None, None]


class Gate(nn.Module):
    """(N, C, H, W) -> (N, 1, H, W) in 0..1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(channels, 1, 3, padding=1), nn.Conv2d(1, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.sigmoid(self.conv2(torch.relu(self.conv1(x))))


class Nadir(nn.Module):
    """Weighted mean of a map around the point below the aircraft: (N, D, h, w), frame offsets (N,) -> (N, D)."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.content = nn.Parameter(torch.zeros(features))
        self.narrow, self.drift = nn.Parameter(torch.zeros(())), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor, offset: Tensor) -> Tensor:
        count, features, height, width = x.shape
        row = (torch.arange(height) + 0.5) / height - 0.5 + self.drift * offset[:, None]
        column = (torch.arange(width) + 0.5) / width - 0.5
        away = row[:, :, None] ** 2 + column**2
        logits = torch.einsum("ndhw,d->nhw", x, self.content) / math.sqrt(features) - 4 * F.softplus(self.narrow) * away
        weights = torch.softmax(logits.reshape(count, -1), 1)
        return torch.einsum("np,ndp->nd", weights, x.reshape(count, features, -1))


class Attention(nn.Module):
    """Weights of the frames (B, T, D) -> (B, T)."""

    def __init__(self, features: int, frames: int, position: bool) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(features, features // 2), nn.Linear(features // 2, 1)
        self.position = nn.Parameter(torch.zeros(frames, features)) if position else None

    def forward(self, f: Tensor) -> Tensor:
        placed = f if self.position is None else f + self.position
        return torch.softmax(self.fc2(torch.relu(self.fc1(placed)))[..., 0], dim=1)


class Network(nn.Module):
    """options: the keys of `parse` that name the graph. (B, T, C, H, W) frames and (B, S) angles -> (B,)."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.together, self.remat = options.frames == "together", bool(options.remat)
        channels, dense = options.channels, options.dense
        layers: list[nn.Module] = []
        for inputs, outputs in zip([options.inputs, *channels], channels, strict=False):
            norm = nn.BatchNorm2d(outputs) if options.norm == "batch" else nn.GroupNorm(GROUPS, outputs)
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), norm, nn.LeakyReLU(0.01), nn.MaxPool2d(2)]
            layers.append(nn.Dropout2d(options.dropout[0]))
        self.cnn_layers = nn.ModuleList(layers)
        identity = options.film == "identity"
        films = [Film(options.sun, options.film_hidden, channels[0], identity)] if options.film != "none" else []
        self.film_layers = nn.ModuleList(films)
        self.spatial_attention = Gate(options.inputs) if options.gate else None
        self.temporal_attention = Attention(channels[-1], options.temporal_frames, bool(options.position)) if options.temporal else None
        self.nadir = Nadir(channels[-1]) if options.pool == "nadir" else None
        layers = []
        for inputs, outputs, rate in zip([channels[-1], *dense], dense, options.dropout[1:], strict=False):
            norm = nn.BatchNorm1d(outputs) if options.norm == "batch" else nn.LayerNorm(outputs)
            layers += [nn.Linear(inputs, outputs), norm, nn.LeakyReLU(0.01), nn.Dropout(rate)]
        self.dense_layers = nn.Sequential(*layers)
        self.output = nn.Linear(dense[-1], 1)

    def encode(self, x: Tensor, sun: Tensor, offset: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, D)."""
        if self.spatial_attention is not None:
            x = x * self.spatial_attention(x)
        for start in range(0, len(self.cnn_layers), 5):
            conv, norm, activation, pool, dropout = self.cnn_layers[start : start + 5]
            x = activation(norm(conv(x)))
            if start == 0 and len(self.film_layers):
                x = self.film_layers[0](x, sun)
            x = dropout(pool(x))
        return x.mean((2, 3)) if self.nadir is None else self.nadir(x, offset)

    def forward(self, frames: Tensor, sun: Tensor) -> Tensor:
        windows, count = frames.shape[:2]
        offsets = torch.arange(count, dtype=frames.dtype) - count // 2
        if self.together:
            flat = self.encode(frames.flatten(0, 1), sun.repeat_interleave(count, 0), offsets.repeat(windows))
            f = flat.reshape(windows, count, -1)
        else:
            arguments = [(frames[:, t], sun, offsets[t].expand(windows)) for t in range(count)]
            if self.remat and self.training:
                encoded = [torch.utils.checkpoint.checkpoint(self.encode, *each, use_reentrant=False) for each in arguments]
            else:
                encoded = [self.encode(*each) for each in arguments]
            f = torch.stack(encoded, 1)
        weights = self.temporal_attention(f) if self.temporal_attention is not None else torch.full((windows, count), 1 / count)
        context = torch.einsum("bt,btd->bd", weights, f)
        return self.output(self.dense_layers(context))[:, 0]


def check(path: str) -> dict[str, float]:
    """Largest differences from the recorded output, loss and gradient norms."""
    with np.load(path, allow_pickle=False) as file:
        recorded = {name: torch.from_numpy(np.asarray(file[name])) for name in file.files}
    weights = {name.removeprefix("w/"): value for name, value in recorded.items() if name.startswith("w/")}
    channels = [len(weights[f"cnn_layers.{layer}.bias"]) for layer in (0, 5, 10)]
    dense = [len(weights[f"dense_layers.{layer}.bias"]) for layer in (0, 4)]
    options = parse(["--check", path, *REFERENCE])
    options.channels, options.dense, options.dropout = channels, dense, [0.0, 0.0, 0.0]
    network = Network(options)
    network.load_state_dict(weights)
    frames, sun = recorded["in/image"].nan_to_num()[:, :, None], torch.cat([recorded["in/sza"], recorded["in/saa"]], 1)
    found = {"infer": float((network.eval()(frames, sun).detach() - recorded["out/infer"][:, 0]).abs().max())}
    y = network.train()(frames, sun)
    loss = F.huber_loss(y, recorded["in/y"][:, 0])
    loss.backward()
    found["train"] = float((y.detach() - recorded["out/train_mode_no_dropout"][:, 0]).abs().max())
    found["loss"] = float((loss.detach() - recorded["loss/train_mode_huber"]).abs())
    norms = [(float(value.grad.norm()), float(recorded[f"gradnorm/{name}"])) for name, value in network.named_parameters()]
    found["gradient_norms"] = max(abs(own - other) / max(other, 0.1) for own, other in norms)
    return found


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Time whole steps on tensors in memory: train = a random batch, forward, huber, backward, clip, AdamW; infer = forward alone."""
    allocator = "keep" if options.allocator == "keep" and keep_freed_memory() else "default"
    torch.manual_seed(options.seed)
    rows = max(options.rows, options.batch)
    frames = torch.randn(rows, options.temporal_frames, options.inputs, options.height, options.width)
    sun, target = torch.randn(rows, options.sun), torch.randn(rows)
    name = "eager, channels last" if options.channels_last else "eager"
    for mode, threads in itertools.product(options.mode, options.threads):
        torch.set_num_threads(threads)
        network = Network(options)
        if options.channels_last:
            network = network.to(memory_format=torch.channels_last)
        network.train(mode == "train")
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3, weight_decay=0.01)
        wall, cpu = [], []
        with torch.inference_mode(mode == "infer"):
            for _ in range(options.warmup + options.steps):
                started, cpu_started = time.perf_counter(), time.process_time()
                drawn = torch.randperm(rows)[: options.batch]
                images = frames[drawn]
                if options.channels_last:
                    flat = images.flatten(0, 1).contiguous(memory_format=torch.channels_last)
                    images = flat.unflatten(0, images.shape[:2])
                y = network(images, sun[drawn])
                if mode == "train":
                    optimizer.zero_grad()
                    F.huber_loss(y, target[drawn]).backward()
                    nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                    optimizer.step()
                wall.append(time.perf_counter() - started)
                cpu.append(time.process_time() - cpu_started)
        wall, cpu = wall[options.warmup :], cpu[options.warmup :]
        yield {
            "program": f"{name}, {threads} thread{'s' * (threads > 1)}", "mode": mode, "batch": options.batch,
            "parameters": sum(value.numel() for value in network.parameters()), "steps": options.steps,
            "wall_s": {"median": float(np.median(wall)), "min": min(wall), "max": max(wall)}, "cpu_s": float(np.median(cpu)),
            "windows_per_s": options.batch / float(np.median(wall)), "frames": options.frames, "torch": torch.__version__,
            "peak_memory_bytes": peak_memory_bytes(),
            "threads": torch.get_num_threads(), "allocator": allocator,
        }  # fmt: skip


REFERENCE = ["--inputs", "1", "--sun", "2", "--film", "plain", "--norm", "batch", "--pool", "mean", "--gate", "1", "--position", "0",
             "--film-hidden", "256", "--frames", "each", "--temporal-frames", "5"]  # fmt: skip


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", metavar="RECORDED", help="compare the reference graph with recorded arrays (.npz)")
    action.add_argument("--bench", action="store_true", help="time training and inference on random frames")
    parser.add_argument("--mode", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    parser.add_argument("--channels", nargs=3, type=int, default=[16, 32, 64])
    parser.add_argument("--dense", nargs=2, type=int, default=[64, 32])
    parser.add_argument("--dropout", nargs=3, type=float, default=[0.1, 0.2, 0.2])
    parser.add_argument("--norm", choices=("batch", "group"), default="group")
    parser.add_argument("--film", choices=("none", "plain", "identity"), default="identity")
    parser.add_argument("--pool", choices=("mean", "nadir"), default="nadir")
    parser.add_argument("--frames", choices=("each", "together"), default="together")
    sizes = {"batch": 20, "temporal-frames": 5, "height": 32, "width": 48, "inputs": 2, "sun": 3, "film-hidden": 256}
    switches = {"gate": 0, "position": 1, "temporal": 1, "remat": 0, "channels-last": 1}
    for name, default in {**sizes, **switches, "rows": 64, "steps": 10, "warmup": 2, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1], help="each is measured")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep freed memory (faster), or as glibc comes")
    options = parser.parse_args(arguments)
    if options.check and not Path(options.check).is_file():
        parser.error(f"no file {options.check}")
    if min(options.steps, *options.threads, options.batch) < 1:
        parser.error("--steps, --threads and --batch must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per measurement. --check exits with 1 when the outputs are off by 1e-4 or more."""
    options = parse(arguments)
    if options.bench:
        for line in bench(options):
            print(json.dumps(line), flush=True)
        return 0
    found = check(options.check)
    print(json.dumps(found), flush=True)
    return 0 if max(found.values()) < 1e-4 else 1


if __name__ == "__main__":
    sys.exit(main())
