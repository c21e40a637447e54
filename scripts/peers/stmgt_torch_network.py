"""The earlier traffic network in PyTorch + PyG, with its loops over time steps and nodes or with them folded."""

# pyright: reportMissingImports=false

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch_geometric.nn import GATv2Conv

Batch = dict[str, Tensor]
Mixture = tuple[Tensor, Tensor, Tensor]  # means, standard deviations, logits, each (B, N, P, K), normalised units


class Normalizer(nn.Module):
    """z = (x - mean) / std with saved statistics."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))
        self.register_buffer("std", torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / (self.std + 1e-8)


class Calendar(nn.Module):
    """Whole hour 0..23, weekday (Monday 0) and weekend flag, each (B, T) -> (B, T, d)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dow_embedding = nn.Embedding(7, width // 2)
        self.weekend_embedding = nn.Embedding(2, width // 4)
        self.proj = nn.Linear(2 + width // 2 + width // 4, width)

    def forward(self, hour: Tensor, dow: Tensor, weekend: Tensor) -> Tensor:
        angle = (2 * math.pi / 24 * hour).to(self.proj.weight.dtype).unsqueeze(-1)
        return self.proj(torch.cat([angle.sin(), angle.cos(), self.dow_embedding(dow), self.weekend_embedding(weekend)], -1))


class Block(nn.Module):
    """Graph attention and temporal attention side by side, fused by a gate: (B, N, T, d) -> (B, N, T, d)."""

    def __init__(self, width: int, heads: int, dropout: float, drop_edge: float) -> None:
        super().__init__()
        self.gat = GATv2Conv(width, width, heads=heads, concat=False, dropout=dropout)
        self.temporal_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.temporal_ffn = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(4 * width, width))
        self.fusion_gate = nn.Linear(2 * width, width)
        self.ln_spatial, self.ln_temporal1 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.ln_temporal2, self.ln_fusion = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)
        self.drop_edge = drop_edge

    def kept(self, edges: Tensor) -> Tensor:
        """The edges (2, E) of this step: one draw per block, for all samples and times. GATv2Conv adds self-loops later."""
        if not self.training or self.drop_edge == 0:
            return edges
        return edges[:, torch.rand(edges.shape[1]) >= self.drop_edge]

    def sequences(self, x: Tensor) -> Tensor:
        """Attention over time and feed-forward, post-norm: (sequences, T, d) -> the same."""
        attended, _ = self.temporal_attn(x, x, x, need_weights=False)
        x = self.ln_temporal1(x + self.dropout(attended))
        return self.ln_temporal2(x + self.dropout(self.temporal_ffn(x)))

    def spatial(self, x: Tensor, edges: Tensor) -> Tensor:
        raise NotImplementedError

    def temporal(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor, edges: Tensor) -> Tensor:
        spatial = self.ln_spatial(self.spatial(x, self.kept(edges)))
        temporal = self.temporal(x)
        gate = torch.sigmoid(self.fusion_gate(torch.cat([spatial, temporal], -1)))
        return self.ln_fusion(gate * spatial + (1 - gate) * temporal + x)


class LoopBlock(Block):
    """The earlier shape: a Python loop over time steps, another over nodes."""

    def spatial(self, x: Tensor, edges: Tensor) -> Tensor:
        samples, nodes, steps, width = x.shape
        outputs = []
        for step in range(steps):
            batched = torch.cat([edges + sample * nodes for sample in range(samples)], 1)
            outputs.append(self.gat(x[:, :, step].reshape(samples * nodes, width), batched).view(samples, nodes, width))
        return torch.stack(outputs, 2)

    def temporal(self, x: Tensor) -> Tensor:
        return torch.stack([self.sequences(x[:, node]) for node in range(x.shape[1])], 1)


class FoldedBlock(Block):
    """The same calls, once over all B*T graphs and once over all B*N sequences."""

    def spatial(self, x: Tensor, edges: Tensor) -> Tensor:
        samples, nodes, steps, width = x.shape
        offsets = nodes * torch.arange(samples * steps)
        batched = (edges[:, None] + offsets[:, None]).reshape(2, -1)
        out = self.gat(x.transpose(1, 2).reshape(-1, width), batched)
        return out.view(samples, steps, nodes, width).transpose(1, 2)

    def temporal(self, x: Tensor) -> Tensor:
        return self.sequences(x.flatten(0, 1)).view(x.shape)


class Weather(nn.Module):
    """Pooled nodes (B, N, d) attend to the weather history (B, T, 3), z-scored."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.weather_proj = nn.Linear(3, width)
        self.cross_attn = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, weather: Tensor) -> Tensor:
        memory = self.weather_proj(weather)
        attended, _ = self.cross_attn(x, memory, memory, need_weights=False)
        return self.norm(x + self.dropout(attended))


class Head(nn.Module):
    """(B, N, d) -> a Gaussian mixture per node and horizon; row p*K + k of each map is horizon p, component k."""

    def __init__(self, width: int, out_steps: int, components: int) -> None:
        super().__init__()
        self.mu_head, self.sigma_head, self.pi_head = (nn.Linear(width, out_steps * components) for _ in range(3))
        self.shape = (out_steps, components)

    def forward(self, x: Tensor) -> Mixture:
        means, log_stds, logits = (head(x).unflatten(-1, self.shape) for head in (self.mu_head, self.sigma_head, self.pi_head))
        return means, log_stds.exp().clamp(0.1, 10.0), logits


class Network(nn.Module):
    """The recorded network; `program` says how its blocks loop. Parameter names are those of the recorded weights."""

    def __init__(
        self,
        program: str,
        width: int,
        heads: int,
        blocks: int,
        components: int,
        out_steps: int,
        dropout: float = 0.2,
        drop_edge: float = 0.28,
    ) -> None:
        super().__init__()
        block = {"loops": LoopBlock, "folded": FoldedBlock}[program]
        self.speed_normalizer, self.weather_normalizer = Normalizer(()), Normalizer((3,))
        self.traffic_encoder = nn.Linear(1, width)
        self.temporal_encoder = Calendar(width)
        self.st_blocks = nn.ModuleList(block(width, heads, dropout, drop_edge) for _ in range(blocks))
        self.weather_cross_attn = Weather(width, heads, dropout)
        self.output_head = Head(width, out_steps, components)

    def forward(self, batch: Batch, edges: Tensor) -> Mixture:
        """speed (B, N, T) km/h, weather (B, T, 3), hour, dow, weekend (B, T); edges (2, E) source, target."""
        calendar = self.temporal_encoder(batch["hour"], batch["dow"], batch["weekend"])
        x = self.traffic_encoder(self.speed_normalizer(batch["speed"]).unsqueeze(-1)) + calendar.unsqueeze(1)
        for block in self.st_blocks:
            x = block(x, edges)
        return self.output_head(self.weather_cross_attn(x.mean(2), self.weather_normalizer(batch["weather"])))


def mixture_loss(mixture: Mixture, target: Tensor, mse_weight: float = 0.4) -> tuple[Tensor, Tensor, Tensor]:
    """(total, nll, mse) of a normalised target (B, N, P); nll holds the small spread and entropy terms."""
    means, stds, logits = mixture
    weights = logits.softmax(-1)
    log_density = -0.5 * ((target.unsqueeze(-1) - means) / stds) ** 2 - stds.log() - 0.5 * math.log(2 * math.pi)
    log_weights = (weights + 1e-8).log()
    nll = -torch.logsumexp(log_weights + log_density, -1).mean()
    nll = nll - 0.01 * means.std(-1).mean() + 0.001 * (weights * log_weights).sum(-1).mean()
    mse = F.mse_loss((weights * means).sum(-1), target)
    return nll + mse_weight * mse, nll, mse
