"""The earlier Keras network for train headways as a yardstick for the speed of `convlstm` (preset `baseline`).

The same weights and the same function: two ConvLSTM2D layers with batch norm over the past, their last state repeated for
every future step beside the planned headway of its direction, a third ConvLSTM2D from a zero state, batch norm, a 1x1
product and a sigmoid; mean squared error, Adam, float32. Three programs, timed by their own clock after a warm-up:

    fit      `model.fit` on windows in memory, Keras' own loop from arrays to updated weights
    step     `model.train_on_batch` on one repeated batch
    forward  `model.predict_on_batch` on one repeated batch

Each runs per --backend and --threads, in a process of its own that is bound to so many cores. Values are uniform noise:
only speed is measured. Where there is a choice, the cheaper one is taken, so that a speed-up measured against it is not
flattered: windows are cut beforehand and float32, and the backend is TensorFlow if it is there (on two CPU cores, jax
and torch took ten times its CPU time per window).

    python scripts/peers/convlstm_keras.py --steps 3              66 stations, 30 + 15 minutes: one JSON line per program
    python scripts/peers/convlstm_keras.py --check RECORDED.npz   outputs, loss, gradients against recorded arrays

Needs numpy, keras and one of tensorflow, jax and torch; without them it prints one line and exits with code 2.
"""

# pyright: reportMissingImports=false

import argparse
import itertools
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDS = "pip install numpy keras tensorflow-cpu (or jax, or torch)"
try:
    import numpy as np
except ModuleNotFoundError as missing:
    if __name__ != "__main__":
        raise
    print(f"convlstm_keras.py: {sys.executable} lacks {missing.name}; {NEEDS}", file=sys.stderr)
    sys.exit(2)

BACKENDS = ("tensorflow", "jax", "torch")
PROGRAMS = ("fit", "step", "forward")
DIRECTIONS = 2
TOLERANCES = {"out": 5e-6, "act": 5e-5, "train_out": 1e-4, "loss_relative": 1e-5, "gradient_norm_relative": 2e-4, "moving": 1e-6}


def network(lookback: int, horizon: int, stations: int, hidden: int, kernel: Sequence[int]) -> Any:
    """headway (B, lookback, stations, 2, 1) and planned (B, horizon, 2, 1) -> headway (B, horizon, stations, 2, 1), all 0..1."""
    from keras import Input, Model, layers, ops

    def recurrent(name: str, sequences: bool) -> Any:
        return layers.ConvLSTM2D(hidden, tuple(kernel), padding="same", return_sequences=sequences, name=name)

    headway = Input((lookback, stations, DIRECTIONS, 1), name="headway")
    planned = Input((horizon, DIRECTIONS, 1), name="planned")
    x = recurrent("encoder_1", True)(headway)
    x = layers.BatchNormalization(name="encoder_bn_1")(x)
    x = recurrent("encoder_2", False)(x)
    x = layers.BatchNormalization(name="encoder_bn_2")(x)
    x = ops.repeat(ops.expand_dims(x, 1), horizon, axis=1)
    plan = ops.repeat(ops.expand_dims(planned, 2), stations, axis=2)
    x = ops.concatenate([x, plan], axis=-1)
    x = recurrent("decoder", True)(x)
    x = layers.BatchNormalization(name="decoder_bn")(x)
    return Model([headway, planned], layers.Conv3D(1, 1, activation="sigmoid", name="output")(x))


def compiled(options: argparse.Namespace, model: Any) -> Any:
    import keras

    jit: Any = {"auto": "auto", "on": True, "off": False}[options.jit]
    model.compile(optimizer=keras.optimizers.Adam(options.learning_rate), loss="mse", jit_compile=jit)
    return model


def windows(options: argparse.Namespace, count: int) -> tuple[list[np.ndarray], np.ndarray]:
    """x = [headway, planned] and y of `count` windows, float32 0..1."""
    rng = np.random.default_rng(options.seed)
    place = (options.stations, DIRECTIONS, 1)
    headway = rng.random((count, options.lookback, *place), dtype=np.float32)
    planned = rng.random((count, options.horizon, DIRECTIONS, 1), dtype=np.float32)
    return [headway, planned], rng.random((count, options.horizon, *place), dtype=np.float32)


def weight_names(model: Any) -> list[str]:
    """`layer/array` of every weight, in Keras' order; the cell's name lies between as in recorded files."""
    names = []
    for layer in model.layers:
        cell = "/conv_lstm_cell" if hasattr(layer, "cell") else ""
        names += [f"{layer.name}{cell}/{weight.name}" for weight in layer.weights if "seed" not in weight.name]
    return names


class Clock:
    """Wall and CPU seconds at the end of every step."""

    def __init__(self) -> None:
        self.stamps: list[tuple[float, float]] = []

    def stamp(self) -> None:
        self.stamps.append((time.perf_counter(), time.process_time()))

    def times(self, warmup: int) -> dict[str, float]:
        """Seconds per step after `warmup` steps: median, min, max and mean of the wall clock, median of the CPU's."""
        wall, cpu = np.diff(np.array(self.stamps[warmup:]), axis=0).T
        spread = {"median": np.median(wall), "min": wall.min(), "max": wall.max(), "mean": wall.mean(), "cpu": np.median(cpu)}
        return {name: float(value) for name, value in spread.items()}


def run_fit(options: argparse.Namespace, model: Any) -> Clock:
    import keras

    clock = Clock()

    def stamp(_batch: int, logs: Mapping[str, Any]) -> None:
        float(keras.ops.convert_to_numpy(logs["loss"]))  # waits for the step
        clock.stamp()

    x, y = windows(options, options.batch * (options.warmup + options.steps))
    clock.stamp()
    callback = keras.callbacks.LambdaCallback(on_train_batch_end=stamp)
    model.fit(x, y, batch_size=options.batch, shuffle=True, verbose=0, callbacks=[callback])
    return clock


def run_repeated(options: argparse.Namespace, call: Callable[[list[np.ndarray], np.ndarray], Any]) -> Clock:
    """`call` waits for its result."""
    clock, (x, y) = Clock(), windows(options, options.batch)
    clock.stamp()
    for _ in range(options.warmup + options.steps):
        np.asarray(call(x, y))
        clock.stamp()
    return clock


def bench(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One measurement per program, times in seconds per step."""
    import keras

    backend, threads = keras.backend.backend(), options.threads[0]
    sizes = {name: getattr(options, name) for name in ("lookback", "horizon", "stations", "hidden", "kernel")}
    for program in options.program:
        keras.utils.set_random_seed(options.seed)
        model = compiled(options, network(**sizes))
        if program == "fit":
            clock = run_fit(options, model)
        elif program == "step":
            clock = run_repeated(options, model.train_on_batch)
        else:
            clock = run_repeated(options, lambda x, _, model=model: model.predict_on_batch(x))
        times = clock.times(options.warmup)
        yield {
            "program": f"{program}, {backend}, {threads} thread{'s' * (threads > 1)}",
            "mode": "infer" if program == "forward" else "train",
            "batch": options.batch,
            **sizes,
            "parameters": model.count_params(),
            "steps": options.steps,
            "wall_s": {name: times[name] for name in ("median", "min", "max")},
            "cpu_s": times["cpu"],
            "windows_per_s": options.batch / times["mean"],
            "first_s": clock.stamps[1][0] - clock.stamps[0][0],
            "backend": backend,
            "keras": keras.__version__,
            backend: __import__(backend).__version__,
            "jit": bool(model.jit_compile),
            "threads": threads,
        }


def check(options: argparse.Namespace, path: str) -> dict[str, Any]:
    """Largest differences from the recorded arrays: inference, activations, one training step."""
    import keras

    with np.load(path) as file:
        recorded = {name: file[name] for name in file.files}
    headway, planned, target = (recorded[f"in/{name}"] for name in ("headway", "schedule", "target"))
    hidden, kernel = recorded["w/encoder_1/conv_lstm_cell/bias"].size // 4, recorded["w/encoder_1/conv_lstm_cell/kernel"].shape[:2]
    model = network(headway.shape[1], planned.shape[1], headway.shape[2], hidden, kernel)
    names = weight_names(model)
    start = [recorded[f"w/{name}"] for name in names]
    model.set_weights(start)
    result: dict[str, Any] = {"backend": keras.backend.backend(), "keras": keras.__version__}

    def largest(own: Any, key: str) -> float:
        return float(np.abs(own - recorded[key]).max())

    result["out"] = largest(model.predict_on_batch([headway, planned]), "out/infer")
    layers = [name for name in ("encoder_1", "encoder_bn_1", "encoder_2", "encoder_bn_2", "decoder", "decoder_bn")]
    inner = keras.Model(model.inputs, [model.get_layer(name).output for name in layers])
    own = inner.predict_on_batch([headway[:1], planned[:1]])
    result["act"] = max(largest(value, f"act/{name}") for name, value in zip(layers, own, strict=True))
    result["train_out"] = largest(keras.ops.convert_to_numpy(model([headway, planned], training=True)), "out/train_mode")
    model.set_weights(start)  # the call above has moved the statistics

    rate = 2.0**20  # a step of plain descent so long that the change of a weight is its gradient
    model.compile(optimizer=keras.optimizers.SGD(rate), loss="mse")
    loss = float(np.asarray(model.train_on_batch([headway, planned], target)))
    result["loss_relative"] = abs(loss / float(recorded["loss/train_mode_mse"]) - 1)
    after = dict(zip(names, model.get_weights(), strict=True))
    gradients = {name: (old - after[name]) / rate for name, old in zip(names, start, strict=True) if "moving" not in name}
    result["gradient_norms"] = len(gradients)
    norms = ((float(np.linalg.norm(value)), float(recorded[f"gradnorm/{name}"])) for name, value in gradients.items())
    result["gradient_norm_relative"] = max(abs(own / other - 1) for own, other in norms)
    result["moving"] = max(largest(value, f"bn_after_one_train_forward/{name}") for name, value in after.items() if "moving" in name)
    return result


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", metavar="RECORDED", help="compare with recorded arrays (.npz) instead of measuring")
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, help="default: the first that is installed")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=list(PROGRAMS))
    parser.add_argument("--threads", nargs="+", type=positive, default=[2, 1])
    for name, default in (("batch", 32), ("lookback", 30), ("horizon", 15), ("stations", 66), ("hidden", 32)):
        parser.add_argument(f"--{name}", type=positive, default=default)
    parser.add_argument("--kernel", nargs=2, type=positive, default=[3, 3], help="stations, directions")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--jit", choices=("auto", "on", "off"), default="auto", help="Keras' jit_compile")
    parser.add_argument("--steps", type=positive, default=5, help="measured steps")
    parser.add_argument("--warmup", type=positive, default=2, help="steps before the clock counts")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.check and not Path(options.check).is_file():
        parser.error(f"no file {options.check}")
    return options


def lacking(backends: Sequence[str]) -> str:
    """The first package that is not installed; "" if none."""
    if not backends:
        return " and ".join(BACKENDS)
    return next((name for name in ("keras", *backends) if find_spec(name) is None), "")


def bind(threads: int) -> None:
    """Keep this process and the threads it starts from now on to so many cores, where the system can (Linux)."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def main(arguments: Sequence[str] | None = None) -> int:
    """Print one JSON line per measurement. --check exits with 1 when a difference exceeds its tolerance."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    options = parse(words)
    installed = [name for name in BACKENDS if find_spec(name)]
    backends = options.backend or installed[:1]
    if missing := lacking(backends):
        print(f"convlstm_keras.py: {sys.executable} lacks {missing}; {NEEDS}", file=sys.stderr)
        return 2
    threads = options.threads[:1] if options.check else options.threads
    runs = list(itertools.product(backends, threads))
    if len(runs) > 1:  # a backend and its threads are chosen once per process
        commands = ([sys.executable, __file__, *words, "--backend", name, "--threads", str(n)] for name, n in runs)
        return max(subprocess.run(command, check=False).returncode for command in commands)
    os.environ["KERAS_BACKEND"] = backends[0]
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    options.threads = threads
    bind(threads[0])
    if options.check:
        result = check(options, options.check)
        print(json.dumps(result), flush=True)
        return int(any(result[name] > tolerance for name, tolerance in TOLERANCES.items()))
    for line in bench(options):
        print(json.dumps(line), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
