"""The `data` section of the cloud base height system, and the checks that need no file."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtrain.errors import UserError

MIN_PIXELS = 8  # rows and columns of a frame: three poolings halve them
CHOICES = {"angles": ("both", "sza_only", "saa_only", "none"), "valid_rows": ("both", "blocked", "flight")}
AT_LEAST = {"reduce": 1, "temporal_frames": 1, "calibration_labels": 0}
POSITIVE = ("match_s", "nav_gap_s", "cycle_s", "gap_s", "overweight_factor", "max_gib")
MAX_EXTRA_FLIGHTS = 21  # flights are named by letters


@dataclass(frozen=True)
class FlightConfig:
    """One flight below `data.path`: a triple of HDF5 files, or one prepared file."""

    name: str
    images: str = ""
    lidar: str = ""
    nav: str = ""
    file: str = ""  # prepared .h5 or .npz, in place of the triple
    year: int | None = None  # of the lidar's day of year, where its file name has no date
    nav_time: str = ""  # dataset of the navigation file's time; "" = the first of its usual names
    nav_heading: str = ""  # dataset of the aircraft's heading, degrees; "" = none


@dataclass(frozen=True)
class SyntheticConfig:
    seed: int
    height: int  # pixels of 0.1 km, along track
    width: int
    label_factor: float  # labels per flight, relative to the campaign
    extra_flights: int  # beyond the campaign's five


@dataclass(frozen=True)
class Reading:
    """How a triple of files becomes a flight; keys of the `data` section with the same names."""

    folder: str  # of the files' names
    rows: tuple[int, int]
    reduce: int
    base_km: tuple[float, float]
    match_s: float
    nav_gap_s: float
    angles: tuple[str, ...]  # of "sza" and "saa" those that must be known


@dataclass(frozen=True)
class DataConfig:
    path: str  # folder of the flights' files; "" = the embedded flight simulator
    flights: tuple[FlightConfig, ...]
    rows: tuple[int, int]  # [first, end) of an image's rows, triples only; (0, 0) = all
    reduce: int  # block mean over reduce x reduce pixels, triples only
    temporal_frames: int  # T, frames of a window
    base_km: tuple[float, float]  # labels outside are not used
    match_s: float  # largest time between a lidar profile and its frame
    nav_gap_s: float  # a longer gap in the navigation has no angles
    angles: str  # both | sza_only | saa_only | none
    train_flights: tuple[str, ...]  # () = all that are not held out
    valid_flight: str  # held out whole
    test_flight: str  # held out whole
    valid_rows: str  # both | blocked | flight: rows of the valid split
    cycle_s: float  # a training flight is cut into cycles of about this length
    gap_s: float  # between train, valid and test parts of a cycle
    calibration_labels: int  # first labels of the test flight, at most a third
    overweight_flight: str  # sampled overweight_factor times as often; "" = none
    overweight_factor: float
    boost: bool  # boosted trees among the reference forecasts, if scikit-learn is installed
    max_gib: float  # larger frames stay memory-mapped
    synthetic: SyntheticConfig

    @property
    def lead(self) -> int:
        """Frames of a window before its centre frame."""
        return self.temporal_frames // 2

    @property
    def needed_angles(self) -> tuple[str, ...]:
        """Of "sza" and "saa" those that a window must have."""
        return {"both": ("sza", "saa"), "sza_only": ("sza",), "saa_only": ("saa",), "none": ()}[self.angles]

    @property
    def reading(self) -> Reading:
        """The keys that reading a flight needs."""
        return Reading(self.path, self.rows, self.reduce, self.base_km, self.match_s, self.nav_gap_s, self.needed_angles)


def check_config(config: DataConfig) -> None:
    """Raises UserError naming the key, its value and what is possible."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise UserError(f"config.data.{key}: {getattr(config, key)!r} is not supported (known: {', '.join(known)})")
    for key, least in AT_LEAST.items():
        if getattr(config, key) < least:
            raise UserError(f"config.data.{key}: must be at least {least}, got {getattr(config, key)}")
    for key in POSITIVE:
        if not getattr(config, key) > 0:
            raise UserError(f"config.data.{key}: must be more than 0, got {getattr(config, key):g}")
    first, end = config.rows
    if (first, end) != (0, 0) and not 0 <= first < end:
        raise UserError(f"config.data.rows: expected 0 <= first < end, or (0, 0) for all rows, got ({first}, {end})")
    check_base(config.base_km, "config.data.base_km")
    _check_source(config)
    if config.valid_flight == config.test_flight:
        raise UserError(f"config.data.valid_flight: {config.valid_flight!r} is also data.test_flight; what is stopped on cannot be the "
                        "reported score; name two flights")  # fmt: skip
    for name in config.train_flights:
        if name in (config.valid_flight, config.test_flight):
            key = "valid_flight" if name == config.valid_flight else "test_flight"
            raise UserError(f"config.data.train_flights: {name!r} is held out by data.{key}; take it out of one of them")
    if not config.path:
        check_flights(config, [chr(ord("A") + k) for k in range(5 + config.synthetic.extra_flights)])
    else:
        check_flights(config, [flight.name for flight in config.flights])


def check_base(base_km: Sequence[float], place: str) -> None:
    """Raises UserError for an empty or reversed range of heights, or one that looks like metres."""
    low, high = base_km
    if not low < high:
        raise UserError(f"{place}: ({low:g}, {high:g}) km holds no height; give (lowest, highest), for example (0.1, 2.0)")
    if high > 50:
        raise UserError(f"{place}: ({low:g}, {high:g}) looks like metres; heights are km, for example (0.1, 2.0)")


def check_entries(flights: Sequence[FlightConfig], place: str) -> None:
    """Raises UserError for a flight without its files or with a name used before, by entry number."""
    seen: dict[str, int] = {}
    for number, flight in enumerate(flights):
        where = f"{place}[{number}]"
        if not flight.name:
            raise UserError(f"{where}: no name; give every flight one of its own")
        if flight.name in seen:
            raise UserError(f"{where}: the name {flight.name!r} was used by entry {seen[flight.name]}; give every flight one of its own")
        seen[flight.name] = number
        triple = {"images": flight.images, "lidar": flight.lidar, "nav": flight.nav}
        missing = [key for key, value in triple.items() if not value]
        if flight.file and len(missing) < 3:
            raise UserError(f"{where}: {flight.name!r} has a prepared file and {', '.join(k for k in triple if k not in missing)}; "
                            "keep one of them")  # fmt: skip
        if not flight.file and missing:
            raise UserError(f"{where}: {flight.name!r} lacks {', '.join(missing)}; give images, lidar and nav, or a prepared file")


def check_flights(config: DataConfig, known: Sequence[str]) -> None:
    """Raises UserError where a key names a flight that is not among `known`."""
    asked = [("valid_flight", config.valid_flight), ("test_flight", config.test_flight)]
    asked += [("train_flights", name) for name in config.train_flights]
    asked += [("overweight_flight", config.overweight_flight)] if config.overweight_flight else []
    for key, name in asked:
        if name not in known:
            raise UserError(f"config.data.{key}: no flight is called {name!r} (known: {', '.join(known)})")
    if config.overweight_flight in (config.valid_flight, config.test_flight):
        raise UserError(f"config.data.overweight_flight: {config.overweight_flight!r} is held out and never drawn; name a training flight")
    if config.train_flights and config.overweight_flight and config.overweight_flight not in config.train_flights:
        raise UserError(f"config.data.overweight_flight: {config.overweight_flight!r} is not among data.train_flights "
                        f"({', '.join(config.train_flights)}) and never drawn; name one of them, or \"\"")  # fmt: skip


def _check_source(config: DataConfig) -> None:
    if config.path:
        if not config.flights:
            raise UserError(f"config.data.flights: empty, but data.path is {config.path}; name its flights as "
                            "{name, images, lidar, nav} or {name, file}")  # fmt: skip
        check_entries(config.flights, "config.data.flights")
        return
    if config.flights:
        raise UserError("config.data.flights: belong to files, but data.path is unset: the embedded flights would be used; set data.path")
    synthetic = config.synthetic
    for key in ("height", "width"):
        if getattr(synthetic, key) < MIN_PIXELS:
            raise UserError(f"config.data.synthetic.{key}: must be at least {MIN_PIXELS}, got {getattr(synthetic, key)}")
    if synthetic.seed < 0:
        raise UserError(f"config.data.synthetic.seed: must be at least 0, got {synthetic.seed}")
    if not synthetic.label_factor > 0:
        raise UserError(f"config.data.synthetic.label_factor: must be more than 0, got {synthetic.label_factor:g}")
    if not 0 <= synthetic.extra_flights <= MAX_EXTRA_FLIGHTS:
        raise UserError(f"config.data.synthetic.extra_flights: must lie in [0, {MAX_EXTRA_FLIGHTS}], got {synthetic.extra_flights}")
