"""Small cloud flights: configs of the embedded ones, and HDF5 triples written to the documented layout with their flaws."""

from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path

import h5py
import numpy as np

from jaxtrain.data.clouds_config import DataConfig, FlightConfig, SyntheticConfig

DAY_S = 86_400
DATES = {"P": ("12feb25", datetime(2025, 2, 12)), "Q": ("18feb25", datetime(2025, 2, 18)), "R": ("30oct24", datetime(2024, 10, 30))}


def config(*, seed=0, size=(16, 24), factor=0.3, extra=0, **changes) -> DataConfig:
    keys = dict(
        path="", flights=(), rows=(0, 0), reduce=1, temporal_frames=5, base_km=(0.1, 2.0), match_s=0.5, nav_gap_s=2.0, angles="both",
        train_flights=(), valid_flight="D", test_flight="C", valid_rows="both", cycle_s=600.0, gap_s=30.0, calibration_labels=30,
        overweight_flight="", overweight_factor=1.0, boost=False, max_gib=8.0, synthetic=SyntheticConfig(seed, *size, factor, extra),
    )  # fmt: skip
    assert set(keys) == {f.name for f in fields(DataConfig)}
    return DataConfig(**{**keys, **changes})


def on_files(folder, **changes) -> DataConfig:
    """Three flights P, Q, R of `write_flights`: P trains, Q validates, R tests."""
    flights = tuple(entry(name) for name in DATES)
    keys = {"path": str(folder), "flights": flights, "valid_flight": "Q", "test_flight": "R", "valid_rows": "flight", **changes}
    return config(**keys)


def entry(name: str, **changes) -> FlightConfig:
    return FlightConfig(**{"name": name, "images": images_name(name), "lidar": lidar_name(name), "nav": nav_name(name), **changes})


def images_name(name):
    return f"GLOVE2025_IRAI_L1B_Rev-_{name}_{DATES[name][1]:%Y%m%d}.h5"


def lidar_name(name):
    return f"CPL_L2_V1-02_01kmLay_25904_{DATES[name][0]}.hdf5"


def nav_name(name):
    return f"CRS_{DATES[name][1]:%Y%m%d}_nav.hdf"


@dataclass
class Triple:
    """What the three files of a flight hold; change it, then `write` it.

    150 frames of 20 x 24 pixels, one per second from 18:00:00.25 UTC, a profile 0.1 s after every fifth of them.
    """

    name: str
    frames: int = 150
    seed: int = 0
    images: dict = field(default_factory=dict)
    lidar: dict = field(default_factory=dict)
    nav: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = np.random.default_rng([self.seed, ord(self.name)])
        noon = DATES[self.name][1].replace(tzinfo=UTC)
        self.start = noon.timestamp() + 18 * 3600 + 0.25
        time = self.start + np.arange(self.frames)
        signal = (1000 + 50 * rng.standard_normal((self.frames, 20, 24))).astype(np.uint16)
        self.images = {"Product/Signal": signal, "Time/TimeUTC": time}
        profile = time[2::5] + 0.1
        day = self.day_of_year(profile)
        base = np.full((len(profile), 3), -9999.0, np.float32)
        base[:, 0] = np.round(rng.uniform(0.3, 1.5, len(profile)) / 0.03) * 0.03
        self.lidar = {
            "layer_descriptor/Profile_Decimal_Julian_Day": np.stack([day, day + 1e-6], axis=1),
            "layer_descriptor/Layer_Base_Altitude": base,
            "layer_descriptor/Lidar_Surface_Altitude": np.full(len(profile), 12.0, np.float32),
            "layer_descriptor/DEM_Surface_Altitude": np.zeros(len(profile), np.float32),
        }
        moments = np.arange(self.start - 3.75, time[-1] + 4)
        self.nav = {
            "nav/solarZenith": 40 + 0.01 * (moments - self.start),
            "nav/sunAzGrd": 200 + 0.02 * (moments - self.start),
            "nav/time": moments,
        }

    def day_of_year(self, time):
        """1 January = 1."""
        year = DATES[self.name][1].year
        return (time - datetime(year, 1, 1, tzinfo=UTC).timestamp()) / DAY_S + 1

    @property
    def base(self):
        return self.lidar["layer_descriptor/Layer_Base_Altitude"]

    @property
    def day(self):
        return self.lidar["layer_descriptor/Profile_Decimal_Julian_Day"]

    def write(self, folder: Path) -> "Triple":
        for file, content in ((images_name, self.images), (lidar_name, self.lidar), (nav_name, self.nav)):
            with h5py.File(folder / file(self.name), "w") as out:
                for key, values in content.items():
                    out[key] = values
        return self


def write_flights(folder: Path) -> dict[str, Triple]:
    """The triples of P, Q and R in a folder."""
    return {name: Triple(name).write(folder) for name in DATES}


def prepared(**changes):
    """Arrays of a prepared flight of 60 frames with a label every fifth."""
    frames = 60
    rng = np.random.default_rng(1)
    base = np.full(frames, np.nan, np.float32)
    base[2::5] = rng.uniform(0.3, 1.5, len(base[2::5]))
    arrays = {
        "frames": rng.normal(280, 5, (frames, 10, 12)).astype(np.float32),
        "time": 1.7e9 + np.arange(frames, dtype=np.float64),
        "sza": np.full(frames, 40, np.float32),
        "saa": np.full(frames, 200, np.float32),
        "cloud_base_km": base,
        "mask": np.isfinite(base),
    }
    return {**arrays, **changes}


def write_prepared(path: Path, arrays) -> str:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        with h5py.File(path, "w") as out:
            for key, values in arrays.items():
                out[key] = values
    return str(path)
