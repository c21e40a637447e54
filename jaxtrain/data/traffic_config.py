"""The `data` section of the traffic system, and the checks that need no file."""

from dataclasses import dataclass

from jaxtrain.errors import UserError

DAY_SECONDS = 86_400
CHOICES = {
    "layout": ("auto", "edges", "matrix", "npz", "h5"),
    "grid": ("regular", "runs"),
    "aggregate": ("mean", "last", "segment"),
    "graph_kind": ("auto", "weights", "distance"),
    "fill": ("carry", "profile", "zero"),
    "split": ("time", "windows", "walk_forward", "blocked"),
    "scale": ("global", "node"),
}


@dataclass(frozen=True)
class SyntheticConfig:
    nodes: int
    days: int
    seed: int


@dataclass(frozen=True)
class DataConfig:
    path: str  # "" = the embedded road network of `synthetic`
    layout: str
    key: str  # array of an npz ("" = data), group of an h5 ("" = the only one)
    feature: int  # channel of (R, N, F) arrays
    start: str  # ISO time of the first row, for files without times
    step_minutes: float
    in_steps: int  # T
    out_steps: int  # P
    grid: str
    aggregate: str  # what a node of `edges` data is
    unit: str  # label of the speeds
    graph_path: str  # "" = edges of the file itself, else no edges
    graph_kind: str
    directed: bool  # True: messages along the edges only
    threshold: float  # smaller kernel weights of distances are dropped
    max_neighbors: int  # per node, itself not counted
    weather_path: str
    locations_path: str
    null_value: float | None  # reading that means "missing"; None = 0 in matrix layouts, none in edges
    max_value: float  # a larger speed is taken for a wrong unit
    fill: str
    max_fill_minutes: float
    split: str
    fractions: tuple[float, float, float]  # train, valid, test; the first one is also where rolling origins begin
    folds: int  # of walk_forward and blocked
    fold: int  # which of them, from 0
    gap_steps: int | None  # rows between a cut and the first target after it; None = in_steps
    scale: str  # statistics over all nodes or per node
    timezone: str  # zone-aware stamps are converted to it; "" = there are none
    synthetic: SyntheticConfig

    @property
    def step_seconds(self) -> int:
        return round(self.step_minutes * 60)

    @property
    def slots(self) -> int:
        """Steps per day (S)."""
        return DAY_SECONDS // self.step_seconds

    @property
    def window(self) -> int:
        """Rows of one example, T + P."""
        return self.in_steps + self.out_steps

    @property
    def gap(self) -> int:
        return self.in_steps if self.gap_steps is None else self.gap_steps


def check_config(config: DataConfig) -> None:
    """Raises UserError naming the key, its value and what is possible."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise UserError(f"config.data.{key}: {getattr(config, key)!r} is not supported (known: {', '.join(known)})")
    if config.step_seconds < 1 or DAY_SECONDS % config.step_seconds:
        raise UserError(f"config.data.step_minutes: a day must be a whole number of steps, got {config.step_minutes:g} minutes")
    for key, least in (("in_steps", 1), ("out_steps", 1), ("feature", 0), ("max_neighbors", 1), ("max_fill_minutes", 0), ("max_value", 0)):
        if getattr(config, key) < least:
            raise UserError(f"config.data.{key}: must be at least {least}, got {getattr(config, key)}")
    if config.gap < 0:
        raise UserError(f"config.data.gap_steps: must be at least 0, got {config.gap}")
    if min(config.fractions) <= 0 or abs(sum(config.fractions) - 1) > 1e-6:
        raise UserError(f"config.data.fractions: three positive numbers that sum to 1 (train, valid, test), got {config.fractions}")
    if config.folds < (3 if config.split == "blocked" else 1) or not 0 <= config.fold < config.folds:
        given = f"got {config.fold} of {config.folds}"
        raise UserError(f"config.data.fold: expected 0 <= fold < folds, with 3 folds or more when blocked, {given}")
    synthetic = config.synthetic
    if not config.path and (synthetic.nodes < 2 or synthetic.days < 2):
        raise UserError(f"config.data.synthetic: needs at least 2 nodes and 2 days, got {synthetic.nodes} and {synthetic.days}")
    if synthetic.seed < 0:
        raise UserError(f"config.data.synthetic.seed: must be at least 0, got {synthetic.seed}")
    if not config.path:
        for key in ("graph_path", "weather_path", "locations_path"):
            if getattr(config, key):
                raise UserError(f"config.data.{key}: {getattr(config, key)} belongs to a file of readings, but data.path is unset and the "
                                "embedded network would be used; set data.path")  # fmt: skip
