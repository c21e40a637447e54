"""The earlier PyTorch + PyG program for traffic speed, rewritten as a yardstick for the speed of `stmgt`.

Two programs with the same weights and the same function:

    loops   the earlier shape: one GATv2Conv call per block and time step on a batched edge list that is built anew
            each time, one attention and feed-forward call per block and node, and a Dataset that looks every road of
            every step of a window up in a dictionary
    folded  the same modules with these loops folded: one GATv2Conv call per block over B*T graphs, one attention
            call per block over B*N sequences, windows sliced out of one tensor

Where the earlier program may have been slower still (attention maps returned and thrown away, text keys in the
look-ups, training predictions kept, memory handed back to the kernel and fetched again in every step), the cheaper
way is taken: a speed-up measured against it is not flattered.

    python scripts/peers/stmgt_torch.py --check WEIGHTS.npz IO.npz        recorded weights and outputs, both programs
    python scripts/peers/stmgt_torch.py --bench --batch 32 --steps 5      one JSON line per program and mode

Needs torch and torch_geometric; without them it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

try:
    import numpy as np
    import torch
    import torch_geometric
    from allocator import keep_freed_memory
    from stmgt_torch_network import Batch, Network, mixture_loss
    from torch import Tensor, nn
    from torch.utils.data import DataLoader, Dataset
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"stmgt_torch.py: {sys.executable} lacks {missing.name}; pip install numpy torch torch_geometric", file=sys.stderr)
    sys.exit(2)


class Series:
    """Random speeds of E roads over `rows` steps, both as a road table and per node (the last outgoing road wins).

    road_speed (rows, E) km/h, node_speed (rows, N) km/h with 0 where no road leaves, weather (rows, 3),
    hour, dow, weekend (rows,). Only the speed of training is measured, so the values are plain noise.
    """

    def __init__(self, edges: np.ndarray, nodes: int, rows: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.edges, self.nodes, self.rows = edges, nodes, rows
        self.road_speed = rng.normal(19.0, 7.0, (rows, edges.shape[1])).clip(1).astype(np.float32)
        self.node_speed = np.zeros((rows, nodes), np.float32)
        self.node_speed[:, edges[0]] = self.road_speed
        self.weather = rng.normal(0, 1, (rows, 3)).astype(np.float32)
        self.hour = np.arange(rows) // 12 % 24
        self.dow = np.arange(rows) // 288 % 7
        self.weekend = (self.dow >= 5).astype(np.int64)


class LookupWindows(Dataset):
    """The earlier loader: each window is put together from (run, road) look-ups, (T + P) E of them."""

    def __init__(self, series: Series, in_steps: int, out_steps: int) -> None:
        self.series, self.in_steps, self.out_steps = series, in_steps, out_steps
        self.roads = [(int(a), int(b)) for a, b in series.edges.T]
        self.table: Mapping[tuple[int, tuple[int, int]], float] = {
            (run, road): float(value) for run, row in enumerate(series.road_speed) for road, value in zip(self.roads, row, strict=True)
        }

    def __len__(self) -> int:
        return self.series.rows - self.in_steps - self.out_steps + 1

    def node_speeds(self, runs: Sequence[int]) -> Tensor:
        """(N, steps): one look-up per road and step."""
        speeds = np.zeros((self.series.nodes, len(runs)), np.float32)
        for column, run in enumerate(runs):
            for road in self.roads:
                value = self.table.get((run, road))
                if value is not None:
                    speeds[road[0], column] = value
        return torch.from_numpy(speeds)

    def __getitem__(self, start: int) -> Batch:
        middle = start + self.in_steps
        past = slice(start, middle)
        calendar = {name: torch.from_numpy(getattr(self.series, name)[past]) for name in ("hour", "dow", "weekend")}
        return {
            "speed": self.node_speeds(range(start, middle)),
            "target": self.node_speeds(range(middle, middle + self.out_steps)),
            "weather": torch.from_numpy(self.series.weather[past]),
            **calendar,
        }


class SlicedWindows:
    """Windows as slices of shared tensors: one index per batch."""

    def __init__(self, series: Series, in_steps: int, out_steps: int) -> None:
        self.in_steps, self.out_steps = in_steps, out_steps
        self.count = series.rows - in_steps - out_steps + 1
        self.columns = {name: torch.from_numpy(getattr(series, name)) for name in ("weather", "hour", "dow", "weekend")}
        self.speed = torch.from_numpy(series.node_speed)

    def take(self, starts: Tensor) -> Batch:
        past = starts[:, None] + torch.arange(self.in_steps)
        future = starts[:, None] + self.in_steps + torch.arange(self.out_steps)
        speeds = {"speed": self.speed[past].transpose(1, 2), "target": self.speed[future].transpose(1, 2)}
        return {**speeds, **{name: column[past] for name, column in self.columns.items()}}


def endless(program: str, series: Series, in_steps: int, out_steps: int, batch: int) -> Iterator[Batch]:
    """Shuffled full batches for ever, through the loader that belongs to the program."""
    if program == "loops":
        loader = DataLoader(LookupWindows(series, in_steps, out_steps), batch_size=batch, shuffle=True, drop_last=True)
        while True:
            yield from loader
    windows = SlicedWindows(series, in_steps, out_steps)
    while True:
        order = torch.randperm(windows.count)
        for starts in order[: windows.count // batch * batch].view(-1, batch):
            yield windows.take(starts)


def random_edges(nodes: int, edges: int, seed: int) -> np.ndarray:
    """(2, E) int64: distinct directed edges between different nodes."""
    pairs = np.random.default_rng(seed).choice(nodes * (nodes - 1), edges, replace=False)
    source, other = np.divmod(pairs, nodes - 1)
    return np.stack([source, other + (other >= source)])


def road_graph(options: argparse.Namespace) -> tuple[int, np.ndarray]:
    """Node count and edges (2, E) of a file, or of a random graph."""
    if options.io:
        io = recorded(options.io)
        return io["x_traffic"].shape[1] if "x_traffic" in io else options.nodes, io["edge_index"].numpy()
    return options.nodes, random_edges(options.nodes, options.edges, options.seed)


def recorded(path: str) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as file:
        return {name: torch.from_numpy(file[name]) for name in file.files if file[name].dtype.kind != "U"}


def restore(program: str, weights: Mapping[str, Tensor], heads: int, out_steps: int) -> Network:
    """The recorded network in evaluation mode; its sizes are read off the weights. The dead `weather_encoder` is left out."""
    width = len(weights["traffic_encoder.bias"])
    blocks = len({name.split(".")[1] for name in weights if name.startswith("st_blocks.")})
    components = len(weights["output_head.mu_head.bias"]) // out_steps
    network = Network(program, width, heads, blocks, components, out_steps)
    network.load_state_dict({name: value for name, value in weights.items() if not name.startswith("weather_encoder.")})
    return network.eval()


def first_window_activations(network: Network) -> list[Tensor]:
    """A list that the next forward pass fills with every block's output (N, T, d) for the first window."""
    activations: list[Tensor] = []
    for block in network.st_blocks:
        block.register_forward_hook(lambda _module, _inputs, output: activations.append(output[0].detach()))
    return activations


def check(weights_path: str, io_path: str) -> Iterator[dict[str, Any]]:
    """Largest differences between either program and the recorded arrays (activations, outputs, losses, gradient norms)."""
    weights, io = recorded(weights_path), recorded(io_path)
    heads = weights["st_blocks.0.gat.att"].shape[1]
    sources = {"weather": "x_weather", "hour": "hour", "dow": "dow", "weekend": "is_weekend"}
    batch = {"speed": io["x_traffic"][..., 0], **{name: io[source] for name, source in sources.items()}}
    for program in ("loops", "folded"):
        network = restore(program, weights, heads, io["y_target"].shape[2])
        activations = first_window_activations(network)
        mixture = network(batch, io["edge_index"])
        total, nll, mse = mixture_loss(mixture, network.speed_normalizer(io["y_target"]), mse_weight=0.35)
        total.backward()
        result: dict[str, Any] = {"program": program}
        for name, value in zip(("means", "stds", "logits"), mixture, strict=True):
            result[name] = float((value.detach().double() - io[f"{name}_f64"]).abs().max())
        for i, value in enumerate(activations):
            result[f"act_block{i}"] = float((value - io[f"act_block{i}_window0"]).abs().max())
        for name, value in (("nll", nll), ("mse", mse), ("total", total)):
            result[f"loss_{name}"] = abs(float(value.detach() - io[f"loss_{name}"]))
        norms = {name: (value.grad.norm(), io[f"gradnorm/{name}"]) for name, value in network.named_parameters() if value.grad is not None}
        result["gradient_norms"] = len(norms)
        result["gradient_norm_relative"] = max(float((own - other).abs() / other) for own, other in norms.values())
        yield result


def step_times(network: Network, batches: Iterator[Batch], edges: Tensor, mode: str, warmup: int, steps: int) -> dict[str, Any]:
    """Time whole steps, input included: train = forward, loss, backward, clip, AdamW; infer = forward alone."""
    network.train(mode == "train")
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-4)
    wall, cpu, wait = [], [], []
    with torch.inference_mode(mode == "infer"):
        for _ in range(warmup + steps):
            started, cpu_started = time.perf_counter(), time.process_time()
            batch = next(batches)
            waited = time.perf_counter() - started
            mixture = network(batch, edges)
            if mode == "train":
                optimizer.zero_grad()
                mixture_loss(mixture, network.speed_normalizer(batch["target"]))[0].backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
            wall.append(time.perf_counter() - started)
            cpu.append(time.process_time() - cpu_started)
            wait.append(waited)
    wall, cpu, wait = wall[warmup:], cpu[warmup:], wait[warmup:]
    return {
        "wall_s": {"median": float(np.median(wall)), "min": min(wall), "max": max(wall)},
        "cpu_s": float(np.median(cpu)),
        "input_wait_s": float(np.median(wait)),
    }


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement per program and mode, times in seconds per step (medians; `wall_s` with its range)."""
    allocator = "keep" if options.allocator == "keep" and keep_freed_memory() else "default"
    torch.set_num_threads(options.threads)
    nodes, edges = road_graph(options)
    series = Series(edges, nodes, options.rows, options.seed)
    sizes = {name: getattr(options, name) for name in ("width", "heads", "blocks", "components")}
    for program in options.program:
        batches = endless(program, series, options.in_steps, options.out_steps, options.batch)
        for mode in options.mode:
            torch.manual_seed(options.seed)
            network = Network(program, out_steps=options.out_steps, **sizes)
            network.speed_normalizer.mean.fill_(float(series.node_speed.mean()))
            network.speed_normalizer.std.fill_(float(series.node_speed.std()))
            times = step_times(network, batches, torch.from_numpy(edges), mode, options.warmup, options.steps)
            yield {
                "program": program,
                "mode": mode,
                "batch": options.batch,
                "nodes": nodes,
                "edges": edges.shape[1],
                **sizes,
                "in_steps": options.in_steps,
                "out_steps": options.out_steps,
                "parameters": sum(value.numel() for value in network.parameters()),
                "steps": options.steps,
                **times,
                "windows_per_s": options.batch / times["wall_s"]["median"],
                "torch": torch.__version__,
                "torch_geometric": torch_geometric.__version__,
                "threads": torch.get_num_threads(),
                "allocator": allocator,
            }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--check", nargs=2, metavar=("WEIGHTS", "IO"), help="compare both programs with recorded arrays (.npz)")
    action.add_argument("--bench", action="store_true", help="time training and inference on synthetic data")
    parser.add_argument("--program", nargs="+", choices=("loops", "folded"), default=["loops", "folded"])
    parser.add_argument("--mode", nargs="+", choices=("train", "infer"), default=["train", "infer"])
    parser.add_argument("--io", help="take edge_index from this .npz (a recorded file, or any with --nodes) instead of a random graph")
    for name, default in (("batch", 32), ("nodes", 62), ("edges", 144), ("width", 96), ("heads", 4), ("blocks", 3), ("components", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--in-steps", type=int, default=12)
    parser.add_argument("--out-steps", type=int, default=12)
    parser.add_argument("--rows", type=int, default=2062, help="length of the series (2,062 rows are 2,039 windows)")
    parser.add_argument("--steps", type=int, default=5, help="measured steps")
    parser.add_argument("--warmup", type=int, default=2, help="steps before the clock counts")
    parser.add_argument("--allocator", choices=("keep", "default"), default="keep", help="keep freed memory (faster), or as glibc comes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    for path in [*(options.check or ()), *([options.io] if options.io else ())]:
        if not Path(path).is_file():
            parser.error(f"no file {path}")
    if options.rows - options.in_steps - options.out_steps + 1 < options.batch:
        parser.error(f"--rows {options.rows} is too short for one batch of {options.batch} windows")
    if not options.io and options.edges > options.nodes * (options.nodes - 1):
        parser.error(f"--edges {options.edges} is more than {options.nodes} nodes can have")
    if min(options.steps, options.threads, options.batch) < 1:
        parser.error("--steps, --threads and --batch must be at least 1")
    return options


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per measurement. --check exits with 1 when the means are off by 1e-4 or more."""
    options = parse(arguments)
    if options.bench:
        for line in bench(options):
            print(json.dumps(line), flush=True)
        return 0
    results = list(check(*options.check))
    for line in results:
        print(json.dumps(line), flush=True)
    return 0 if all(line["means"] < 1e-4 for line in results) else 1


if __name__ == "__main__":
    sys.exit(main())
