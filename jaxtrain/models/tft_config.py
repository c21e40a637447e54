"""What the Temporal Fusion Transformer is made of: its configuration, its variables, and what they cost."""

import difflib
from dataclasses import dataclass

from jaxtrain.errors import UserError
from jaxtrain.nn.selection import Variable

CHOICES = {
    "attention": ("causal", "full"),
    "anchor": ("none", "last"),
    "lstm": ("auto", "scan", "hoisted"),
    "vsn": ("collapsed", "plain"),
    "remat": ("none", "vsn"),
    "head": ("independent", "monotone"),
}


@dataclass(frozen=True)
class Config:
    """The network. All names as in `configs/tft.py`; CHOICES lists the words allowed."""

    hidden: int
    heads: int
    dropout: float
    unknown_dropout: float  # how often a static category is hidden in training, so that index 0 (unknown) is trained
    quantiles: tuple[float, ...]
    attention: str
    anchor: str
    lstm: str
    vsn: str
    remat: str
    head: str

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                near = difflib.get_close_matches(str(value), allowed, n=1, cutoff=0.0)
                raise UserError(f"model.{name} '{value}' is unknown: did you mean '{near[0]}'? (choices: {', '.join(allowed)})")
        if self.hidden < 1 or self.heads < 1 or self.hidden % self.heads:
            raise UserError(f"model.hidden {self.hidden} must be divisible by model.heads {self.heads}, both 1 or more")
        for name in ("dropout", "unknown_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"model.{name} is {getattr(self, name)}: a probability in [0, 1) is needed")
        levels = list(self.quantiles)
        if sorted(set(levels)) != levels or not all(0 < level < 1 for level in levels) or 0.5 not in levels:
            raise UserError(f"model.quantiles {levels}: levels must increase inside (0, 1) and contain 0.5")


@dataclass(frozen=True)
class Variables:
    """Variables by role, categories before real ones inside each; the order of every weight vector."""

    static: tuple[Variable, ...]
    observed: tuple[Variable, ...]
    known: tuple[Variable, ...]
    targets: tuple[Variable, ...]

    @property
    def past(self) -> tuple[Variable, ...]:
        return self.observed + self.known + self.targets

    def widths(self) -> dict[str, int]:
        """Columns of every input array by its name, 0 where there is none."""
        found = {"targets": len(self.targets)}
        for role in ("static", "observed", "known"):
            variables = getattr(self, role)
            found[f"{role}_cat"] = sum(v.categories > 0 for v in variables)
            found[f"{role}_real"] = sum(v.width for v in variables if not v.categories)
        return found


def flops_per_window(config: Config, variables: Variables, context_steps: int, horizon_steps: int) -> float:
    """Floating-point operations of the products of one forward pass of one window, a multiply-add as two; training is 3 x that.

    Per step: selection networks, LSTM, gate, enrichment, keys and values; per future step: queries, scores, mixing, the rest;
    once: static selection and the four contexts with their products.
    """
    h, tau, steps = config.hidden, horizon_steps, context_steps + horizon_steps
    d = h // config.heads

    def selection(m: int) -> int:
        if m == 1:  # no weight network
            return (4 if config.vsn == "plain" else 3) * h * h
        if config.vsn == "plain":
            return (5 * m + 1) * h * h + (m * m + 4 * m) * h
        return (3 * m + 1) * h * h + 6 * m * h + m * m

    always = 8 * h * h + 2 * h * h + 4 * h * h + h * h + h * d
    ahead = h * h + steps * h + steps * d + 8 * h * h + h * d + h * len(variables.targets) * len(config.quantiles)
    once = selection(len(variables.static)) + (16 + 3) * h * h if variables.static else 0
    products = once + context_steps * selection(len(variables.past)) + tau * selection(len(variables.known)) + steps * always + tau * ahead
    return 2.0 * products
