"""pytorch-forecasting as a yardstick: its columns, its windows and its steps are what the report says they are."""

import importlib
import itertools
import json
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "peers" / "tft_forecasting.py"
TINY = "--context 6 --horizon 3 --hidden 8 --heads 2 --groups 3 --batch 4 --warmup 1".split()
PACKAGES = ("lightning", "pandas", "torch", "pytorch_forecasting")


@pytest.fixture(scope="module")
def peer():
    for package in PACKAGES:
        pytest.importorskip(package)
    sys.path.insert(0, str(SCRIPT.parent))
    module = importlib.import_module("tft_forecasting")
    module.quiet()
    yield module
    sys.path.remove(str(SCRIPT.parent))


def a_run(peer, *arguments: str):
    """(options, dataset, network) of a small problem without dropout."""
    options = peer.parse([*TINY, "--dropout", "0", *arguments])
    data = peer.dataset(options)
    return options, data, peer.network(options, data, 8)


def weights(model) -> np.ndarray:
    return np.concatenate([p.detach().numpy().ravel() for p in model.parameters()])


@pytest.mark.parametrize("layout, counts, outputs", [("fleet", (3, 12, 5), 4), ("electricity", (1, 4, 3), 1)])
def test_the_network_has_the_variables_of_the_config(peer, layout, counts, outputs):
    options, data, model = a_run(peer, "--layout", layout)
    assert (len(model.static_variables), len(model.encoder_variables), len(model.decoder_variables)) == counts
    prediction = model(next(peer.endless(options, data))[0])["prediction"]
    prediction = prediction if isinstance(prediction, list) else [prediction]
    assert [tuple(p.shape) for p in prediction] == [(4, 3, len(options.quantiles))] * outputs


def test_windows_are_rows_of_the_table(peer):
    options, data, _ = a_run(peer)
    table = peer.frame(options).set_index(["group", "time"])
    x, (targets, _) = next(peer.endless(options, data))
    group = data.transform_values("group", x["groups"][:2, 0], inverse=True, group_id=True)[0]
    last = int(x["decoder_time_idx"][0, -1])
    for name, target, past in zip(data.target_names, targets, x["encoder_target"], strict=True):
        expected = [table.loc[(group, step), name] for step in range(last - 8, last + 1)]
        np.testing.assert_array_equal([*past[0], *target[0]], expected)


@pytest.mark.parametrize("optimizer, clip", [("Adam", "0.05"), ("SGD", "0")])  # Adam does not feel the scale of a gradient
def test_trainer_and_plain_loop_take_the_same_steps(peer, monkeypatch, optimizer, clip):
    monkeypatch.setattr(peer.torch.optim, "Adam", getattr(peer.torch.optim, optimizer))
    options, data, trained = a_run(peer, "--batch", "8", "--accumulate", "2", "--steps", "2", "--clip", clip)
    plain, start = peer.network(options, data, 8), weights(trained)
    samples = list(itertools.islice(peer.endless(options, data), 6))
    assert len(samples[0][0]["decoder_lengths"]) == 4
    assert len(peer.run_trainer(options, trained, peer.torch.utils.data.DataLoader(samples, batch_size=None)).stamps) == 3
    peer.run_plain(options, plain, iter(samples))
    assert np.abs(weights(plain) - start).max() > 1e-4
    np.testing.assert_allclose(weights(trained), weights(plain), atol=1e-6)


def test_times_leave_the_warm_up_out(peer):
    clock = peer.Clock()
    clock.stamps = [(100.0, 50.0), (101.0, 51.0), (103.0, 51.5), (104.0, 52.5), (109.0, 54.0)]
    assert clock.times(warmup=2) == {"median": 2.0, "min": 1.0, "max": 5.0, "mean": 8 / 3, "cpu": 1.0}


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="CPU time of children comes from /proc")
def test_cpu_time_includes_living_workers(peer):
    worker = multiprocessing.get_context("fork").Process(target=sum, args=(itertools.count(),), daemon=True)
    before, own = peer.cpu_seconds(), time.process_time()
    worker.start()
    try:
        time.sleep(0.5)
        assert peer.cpu_seconds() - before > 0.05 + time.process_time() - own
    finally:
        worker.terminate()
        worker.join()


def test_bench_prints_one_line_per_measurement(peer, capsys):
    options = "--steps 2 --threads 1 --workers 0 1 --continuous 8 4 --allocator default".split()
    assert peer.main([*TINY, *options]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["program"] for line in lines] == [
        "trainer, 0 workers, inputs 8 wide, 1 thread", "trainer, 1 workers, inputs 8 wide, 1 thread",
        "trainer, 0 workers, inputs 4 wide, 1 thread", "trainer, 1 workers, inputs 4 wide, 1 thread",
        "loop, inputs 8 wide, 1 thread", "loop, inputs 4 wide, 1 thread",
        "step, inputs 8 wide, 1 thread", "step, inputs 4 wide, 1 thread", "loader, 1 thread",
    ]  # fmt: skip
    for line in lines:
        assert [line[name] for name in ("batch", "targets", "hidden", "steps", "windows")] == [4, 4, 8, 2, 24]
        wall = line["wall_s"]
        assert 0 < wall["min"] <= wall["median"] <= wall["max"] and line["cpu_s"] >= 0
        assert 4 / wall["max"] <= line["windows_per_s"] <= 4 / wall["min"]
    assert lines[0]["parameters"] > lines[2]["parameters"]


def test_the_table_is_long_enough_for_every_step(peer):
    """A loader that starts anew in the middle of a measurement would be timed with it."""
    options, data, _ = a_run(peer, "--batch", "16", "--steps", "7", "--warmup", "3")
    assert len(data) >= 16 * (7 + 3)


def test_no_clipping_leaves_the_gradient_alone(peer):
    options, data, clipped = a_run(peer, "--steps", "1")
    free = peer.network(options, data, 8)
    samples, start = list(itertools.islice(peer.endless(options, data), 2)), weights(free)
    peer.run_plain(peer.parse([*TINY, "--steps", "1", "--clip", "1e-9"]), clipped, iter(samples))
    peer.run_plain(peer.parse([*TINY, "--steps", "1", "--clip", "0"]), free, iter(samples))
    assert np.abs(weights(clipped) - start).max() < np.abs(weights(free) - start).max()  # Adam's eps shows in the clipped steps


@pytest.mark.parametrize("package", PACKAGES)
def test_a_missing_package_is_one_line_and_exit_code_2(package, tmp_path):
    for earlier in PACKAGES[: PACKAGES.index(package)]:
        pytest.importorskip(earlier)
    (tmp_path / f"{package}.py").write_text(f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    finished = subprocess.run([sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 2 and finished.stdout == ""
    assert len(finished.stderr.splitlines()) == 1 and f"lacks {package};" in finished.stderr


@pytest.mark.parametrize("arguments, message", [
    (["--batch", "6", "--accumulate", "4"], "--batch 6 is not a multiple of --accumulate 4"),
    (["--rows", "8"], "gives 0 windows"),
    (["--hidden", "9"], "--hidden 9 is not a multiple of --heads 2"),
    (["--steps", "0"], "0 is not at least 1"),
])  # fmt: skip
def test_sizes_that_do_not_fit_are_one_line_and_exit_code_2(peer, capsys, arguments, message):
    with pytest.raises(SystemExit) as stopped:
        peer.parse([*TINY, *arguments])
    assert stopped.value.code == 2 and message in capsys.readouterr().err
