"""The PyTorch yardstick computes the recorded function, in the shape it claims, and reports what it timed."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "stmgt_torch.py"
TINY = ["--batch", "2", "--nodes", "5", "--edges", "7", "--width", "8", "--heads", "2", "--blocks", "1", "--components", "2"]
TINY += ["--in-steps", "3", "--out-steps", "2", "--rows", "12", "--steps", "2", "--warmup", "1", "--threads", "1", "--allocator", "default"]


@pytest.fixture(scope="module")
def peer():
    pytest.importorskip("torch")
    pytest.importorskip("torch_geometric")
    sys.path.insert(0, str(SCRIPT.parent))
    yield importlib.import_module("stmgt_torch")
    sys.path.remove(str(SCRIPT.parent))


@pytest.fixture
def series(peer):
    """Twelve rows of five nodes; node 4 has no outgoing road and node 0 has two, of which the second wins."""
    return peer.Series(np.array([[0, 0, 1, 2, 3], [1, 2, 2, 3, 4]]), nodes=5, rows=12, seed=0)


def both(peer, **sizes):
    """The two programs with the same random weights."""
    sizes = {"width": 8, "heads": 2, "blocks": 2, "components": 2, "out_steps": 2, **sizes}
    loops, folded = (peer.Network(program, **sizes) for program in ("loops", "folded"))
    folded.load_state_dict(loops.state_dict())
    return loops, folded


def a_batch(peer, series):
    return peer.SlicedWindows(series, in_steps=3, out_steps=2).take(peer.torch.tensor([1, 6, 4]))


def test_both_programs_repeat_the_recorded_run(peer, shared, capsys):
    golden = [str(shared / "golden" / f"stmgt_baseline_1month_{part}.npz") for part in ("weights", "io")]
    assert peer.main(["--check", *golden]) == 0
    results = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [result.pop("program") for result in results] == ["loops", "folded"]
    for result in results:
        assert result.pop("gradient_norms") == 92
        assert result.pop("gradient_norm_relative") < 1e-4
        assert result.pop("means") < 1e-4
        assert len(result) == 8 and max(result.values()) < 1e-5, result


def test_a_wrong_weight_fails_the_check(peer, shared, tmp_path, capsys):
    golden = {part: shared / "golden" / f"stmgt_baseline_1month_{part}.npz" for part in ("weights", "io")}
    weights = dict(np.load(golden["weights"]))
    weights["st_blocks.1.gat.att"] = -weights["st_blocks.1.gat.att"]
    np.savez(tmp_path / "weights.npz", **weights)
    assert peer.main(["--check", str(tmp_path / "weights.npz"), str(golden["io"])]) == 1
    assert json.loads(capsys.readouterr().out.splitlines()[0])["means"] > 1e-4


def test_the_programs_agree_in_value_and_gradient(peer, series):
    batch, edges = a_batch(peer, series), peer.torch.from_numpy(series.edges)
    gradients = []
    for network in both(peer, dropout=0.0, drop_edge=0.0):
        mixture = network.train()(batch, edges)
        assert mixture[0].shape == (3, 5, 2, 2)
        loss = peer.mixture_loss(mixture, network.speed_normalizer(batch["target"]))[0]
        loss.backward()
        gradients.append(peer.torch.cat([parameter.grad.flatten() for parameter in network.parameters()]))
    peer.torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-4 * float(gradients[0].abs().max()))
    assert float(gradients[0].abs().max()) > 0


def test_calls_per_forward_pass(peer, series):
    calls = []
    for network in both(peer):
        graph_calls, attention_calls = [], []
        for block in network.st_blocks:
            block.gat.register_forward_hook(lambda *_, counted=graph_calls: counted.append(1))
            block.temporal_attn.register_forward_hook(lambda *_, counted=attention_calls: counted.append(1))
        network(a_batch(peer, series), peer.torch.from_numpy(series.edges))
        calls.append((len(graph_calls), len(attention_calls)))
    assert calls == [(2 * 3, 2 * 5), (2, 2)]  # blocks x steps and blocks x nodes, against one of each per block


def test_dropped_edges_are_drawn_only_in_training(peer, series):
    edges = peer.torch.from_numpy(series.edges)
    block = both(peer, drop_edge=1.0)[0].st_blocks[0]
    assert block.train().kept(edges).shape == (2, 0)
    assert block.eval().kept(edges).shape == edges.shape


def test_both_loaders_build_the_same_windows(peer, series):
    sliced = peer.SlicedWindows(series, in_steps=3, out_steps=2)
    lookups = peer.LookupWindows(series, in_steps=3, out_steps=2)
    assert len(lookups) == sliced.count == 8
    for start in (0, 7):
        one, other = lookups[start], sliced.take(peer.torch.tensor([start]))
        assert one.keys() == other.keys()
        for name in one:
            np.testing.assert_array_equal(one[name].numpy(), other[name][0].numpy(), err_msg=name)
    np.testing.assert_array_equal(lookups[7]["target"][0], series.road_speed[10:12, 1])
    np.testing.assert_array_equal(lookups[7]["target"][4], [0, 0])


def test_lookups_per_window_as_recorded(peer):
    class Counting(dict):
        count = 0

        def get(self, key, default=None):
            self.count += 1
            return super().get(key, default)

    windows = peer.LookupWindows(peer.Series(peer.random_edges(62, 144, seed=0), nodes=62, rows=24, seed=0), in_steps=12, out_steps=12)
    windows.table = Counting(windows.table)
    windows[0]
    assert windows.table.count == 3456


def test_random_edges_are_distinct_and_without_loops(peer):
    edges = peer.random_edges(4, 12, seed=0)
    assert len({(int(a), int(b)) for a, b in edges.T}) == 12
    assert (edges[0] != edges[1]).all() and edges.min() == 0 and edges.max() == 3


def test_bench_prints_one_line_per_measurement(peer, capsys):
    assert peer.main(["--bench", *TINY]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["program"], line["mode"]) for line in lines] == [
        ("loops", "train"), ("loops", "infer"), ("folded", "train"), ("folded", "infer"),
    ]  # fmt: skip
    for line in lines:
        assert (line["batch"], line["nodes"], line["edges"], line["width"], line["steps"], line["threads"]) == (2, 5, 7, 8, 2, 1)
        wall = line["wall_s"]
        assert 0 < line["input_wait_s"] < wall["min"] <= wall["median"] <= wall["max"] and line["cpu_s"] > 0
        assert line["windows_per_s"] == pytest.approx(2 / wall["median"])
    assert len({line["parameters"] for line in lines}) == 1


def test_default_sizes_are_the_recorded_network(peer):
    options = peer.parse(["--bench"])
    sizes = {name: getattr(options, name) for name in ("width", "heads", "blocks", "components", "out_steps")}
    network = peer.Network("loops", **sizes)
    assert sum(value.numel() for value in network.parameters()) == 680_244


def test_training_steps_change_the_weights_and_inference_does_not(peer, series):
    edges = peer.torch.from_numpy(series.edges)
    batches = peer.endless("folded", series, 3, 2, 2)
    for mode, changes in (("train", True), ("infer", False)):
        network = both(peer)[1]
        before = network.output_head.mu_head.bias.detach().clone()
        peer.step_times(network, batches, edges, mode, warmup=0, steps=1)
        assert bool((network.output_head.mu_head.bias != before).any()) == changes


@pytest.mark.parametrize("package", ["torch", "torch_geometric"])
def test_a_missing_package_is_one_line_and_exit_code_2(package, tmp_path):
    if package == "torch_geometric":
        pytest.importorskip("torch")
    fake = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n"
    (tmp_path / f"{package}.py").write_text(fake)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT), "--bench"]
    finished = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1 and f"lacks {package};" in finished.stderr


def test_a_missing_recording_is_one_line_and_exit_code_2(peer, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        peer.main(["--bench", "--io", str(tmp_path / "io.npz")])
    assert stopped.value.code == 2 and f"no file {tmp_path / 'io.npz'}" in capsys.readouterr().err
