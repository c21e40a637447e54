"""What the benchmark asks other programs to measure, and what it makes of their answers."""

import importlib
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture
def peers(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("benchmark_peers")


@pytest.fixture
def tides():
    return configs.load(str(ROOT / "tests/sixth/configs/tides.py"), {"train.batch": "8"})


def fleet_sizes(peers, preset: str, folder: Path) -> dict:
    values = configs.load(f"{ROOT}/configs/tft.py:{preset}", {})
    return peers.PEERS["tft"].sizes(values, {"group_names": np.array(["a", "b", "c"])}, folder)


def test_the_fleet_peer_gets_the_columns_of_the_config(peers, tmp_path):
    sizes = fleet_sizes(peers, "default", tmp_path)
    counts = {"targets": 4, "observed-real": 2, "observed-categorical": 1, "known-real": 2, "known-categorical": 2, "relative": 1}
    counts |= {"static-real": 1, "static-categorical": 2, "groups": 3, "context": 288, "horizon": 96, "hidden": 32, "heads": 4}
    assert counts.items() <= sizes.items()
    assert len(sizes["quantiles"]) == 7 and sizes["normalise"] == "global" and sizes["accumulate"] == 1


def test_the_electricity_peer_gets_the_columns_of_the_config(peers, tmp_path):
    sizes = fleet_sizes(peers, "electricity", tmp_path)
    counts = {"targets": 1, "observed-real": 0, "observed-categorical": 0, "known-real": 3, "known-categorical": 0, "relative": 0}
    counts |= {"static-real": 0, "static-categorical": 1, "context": 168, "horizon": 24, "hidden": 128, "step-seconds": 3600}
    assert counts.items() <= sizes.items()
    assert len(sizes["quantiles"]) == 3 and sizes["normalise"] == "group" and sizes["clip"] == 0


def test_engineered_columns_are_counted_by_what_is_known(peers, tmp_path):
    plain, more = (fleet_sizes(peers, preset, tmp_path) for preset in ("default", "features"))
    added = {name: more[name] - plain[name] for name in ("observed-real", "known-real")}
    assert added == {"observed-real": 4, "known-real": 5}  # four lags of a week and one shifted maximum are known


@pytest.mark.parametrize("preset, own, kernel", [
    ("baseline", (3, 3), (3, 3)), ("baseline+smoke", (5, 1), (5, 1)), ("default", (3, 1), (3, 3)),
])  # fmt: skip
def test_the_keras_peer_gets_the_sizes_of_the_config(peers, tmp_path, preset, own, kernel):
    """The kernel too, if its network is the config's."""
    values = configs.load(f"{ROOT}/configs/convlstm.py:{preset}", {"model.kernel": str(own)})
    sizes = peers.PEERS["convlstm"].sizes(values, {"stations": np.zeros((2, 7))}, tmp_path)
    small = preset.endswith("smoke")
    expected = {"stations": 7, "lookback": 10 if small else 30, "horizon": 5 if small else 15, "hidden": 4 if small else 32}
    assert {**expected, "kernel": kernel}.items() <= sizes.items()


@pytest.mark.parametrize("task", ["tft", "stmgt", "convlstm"])
def test_the_scripts_have_the_options_they_are_given(peers, tmp_path, task):
    script = (ROOT / "scripts" / "peers" / peers.PEERS[task].script).read_text()
    statistics = {"neighbors": np.array([[0, 1], [1, 0]]), "neighbor_mask": np.ones((2, 2), bool), "node_ids": np.arange(2)}
    values = configs.load(f"{ROOT}/configs/{task}.py", {})
    statistics |= {"group_names": np.array(["a"]), "stations": np.zeros((2, 7))}
    sizes = peers.PEERS[task].sizes(values, statistics, tmp_path)
    for name in [*sizes, "batch", "steps"]:
        assert any(text in script for text in (f'"--{name}"', f'"{name}": ', f'("{name}", ')), name


def a_peer(peers, monkeypatch, tmp_path: Path, task: str, source: str) -> None:
    script = tmp_path / "peer.py"
    script.write_text(source)
    monkeypatch.setitem(peers.PEERS, task, peers.Peer(str(script), lambda values, statistics, folder: {"bench": (), "levels": (0.1, 0.5)}))


def test_options_reach_the_peer_and_its_lines_come_back(peers, monkeypatch, tmp_path, tides):
    source = "import json, sys\nprint('a remark')\nprint(json.dumps({'words': sys.argv[1:]}))\nprint(json.dumps({'n': 2}))\n"
    a_peer(peers, monkeypatch, tmp_path, tides["task"], source)
    words = ["--bench", "--levels", "0.1", "0.5", "--batch", "8", "--steps", "3", "--steps", "4"]
    assert peers.run(sys.executable, tides, 3, ["--steps", "4"]) == [{"words": words}, {"n": 2}]


def test_a_failing_peer_is_one_line(peers, monkeypatch, tmp_path, tides):
    a_peer(peers, monkeypatch, tmp_path, tides["task"], "import sys\nprint('first', file=sys.stderr)\nsys.exit('it lacks torch')\n")
    with pytest.raises(UserError, match="^--peers: it lacks torch$"):
        peers.run(sys.executable, tides, 3)


@pytest.mark.parametrize("python, task, precisions, message", [
    (sys.executable, "tides", ["float32"], "there is none for tides .there is for stmgt, tft."),
    ("/nowhere/python", "tft", ["float32"], "--peers /nowhere/python: no such program"),
    (sys.executable, "tft", ["bfloat16"], "--precisions bfloat16: peers compute in float32"),
])  # fmt: skip
def test_faults_are_found_before_anything_is_measured(peers, python, task, precisions, message):
    with pytest.raises(UserError, match=message):
        peers.check(python, task, precisions)
    peers.check(sys.executable, "tft", ["float32"])
