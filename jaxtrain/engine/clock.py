"""Time by activity, throughput, and the signals that ask a run to stop."""

import signal
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import jax

from jaxtrain.engine.sharding import AnyProcess


@dataclass
class Clock:
    """Seconds by activity."""

    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("compile", "step", "input_wait", "eval", "checkpoint"), 0.0))

    @contextmanager
    def measure(self, name: str) -> Any:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start


class Meter:
    """Throughput of the loop outside evaluation and checkpoints."""

    def __init__(self, clock: Clock, first_step: int) -> None:
        self._clock, self._began, self._idle, self._waited = clock, time.perf_counter(), 0.0, 0.0
        self._idle, self._waited = self._other(), clock.seconds["input_wait"]
        self._first = self._last = (first_step, 0.0)

    def _other(self) -> float:
        return sum(self._clock.seconds[name] for name in ("compile", "eval", "checkpoint"))

    def busy_seconds(self) -> float:
        return max(time.perf_counter() - self._began - (self._other() - self._idle), 1e-9)

    def samples_per_second(self, step: int, batch: int) -> float:
        """Since the call before."""
        (before, then), now = self._last, self.busy_seconds()
        self._last = (step, now)
        return (step - before) * batch / max(now - then, 1e-9)

    def wait_share(self) -> float:
        """Share of the loop's time that went into waiting for input."""
        return (self._clock.seconds["input_wait"] - self._waited) / self.busy_seconds()

    def overall(self, steps_done: int, batch: int) -> float:
        return steps_done * batch / self.busy_seconds()


class Stop:
    """SIGTERM and the first Ctrl-C ask for a checkpoint and a clean exit; a second Ctrl-C interrupts at once.

    Several processes stop together when one of them is asked. (JAX's preemption service offers the same, but Orbax counts
    steps in it at every save and the two counts would mix; so it is off.)
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._before: dict[int, Any] = {}
        self._agreed, self._reached = AnyProcess(), False

    def __enter__(self) -> "Stop":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _: Any) -> None:
        if number == signal.SIGINT and self.signal is not None:
            raise KeyboardInterrupt
        self.signal = number

    def asked(self) -> bool:
        """Call it equally often on every process, once per dispatch; the same answer on all of them."""
        asked = self.signal is not None
        self._reached = self._reached or (asked if jax.process_count() == 1 else self._agreed.before(asked))
        return self._reached
