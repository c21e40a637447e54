"""The `data` section of the evoked-response system, its constants, and the checks that need no file."""

from dataclasses import dataclass

from jaxtrain.errors import UserError

SAMPLES = 200
SAMPLE_RATE_HZ = 20_000
SAMPLE_MS = 0.05  # sample l is at 0.05 l ms
WINDOW_END_MS = 9.75  # a wave V later than this has no full peak inside the window
STATICS = ("age_years", "intensity_db", "rate_hz", "fmp")
CLASSES = ("NORMAL", "NOROPATI", "SNIK", "TOTAL", "ITIK")  # normal, neuropathy, sensorineural, profound, conductive
UNITS = ("uV", "zscore")
LAYOUT = "abr-1"
# How often each augmentation is drawn.
SHIFT_SHARE, GAIN_SHARE, NOISE_SHARE, STATICS_SHARE = 0.2, 0.2, 0.3, 0.3
CHOICES = {
    "target": ("clean", "other_half", "corrupt"),
    "late_peak": ("mask", "keep"),
    "threshold": ("column", "derive", "none"),
}
GROUPS = ("test", "valid")  # splits that `groups` may name patients of


@dataclass(frozen=True)
class DataConfig:
    path: str  # records (.parquet, .h5); "" = the synthetic clinic of `patients` and `seed`
    patients: int  # synthetic only
    seed: int  # synthetic only
    target: str  # clean | other_half | corrupt: what the signal is to be turned into
    corrupt_sd: tuple[float, float]  # range of the noise added under `corrupt`, in SDs of the record
    late_peak: str  # mask | keep: a wave V later than 9.75 ms
    threshold: str  # column | derive (from each ear's levels) | none
    test_fraction: float  # of the patients of each class
    valid_fraction: float
    split_seed: int
    groups: dict[str, tuple[str, ...]]  # {"test": patient ids, "valid": patient ids} in place of a draw
    class_names: tuple[str, ...]  # five, in the order of the codes 0..4
    balanced_sampler: bool  # records drawn with weight 1 / count of their class
    augment: bool
    shift_samples: int  # at most so many, either way
    gain: tuple[float, float]
    noise_sd: float  # in SDs of the record
    statics_sd: float  # in training SDs
    hide_statics: float  # probability that each of the four values is marked missing in training


def check_config(config: DataConfig) -> None:
    """Raises UserError naming the key, its value and what is possible."""
    for key, known in CHOICES.items():
        if getattr(config, key) not in known:
            raise UserError(f"config.data.{key}: {getattr(config, key)!r} is not supported (known: {', '.join(known)})")
    for key in ("seed", "split_seed", "shift_samples", "noise_sd", "statics_sd"):
        if getattr(config, key) < 0:
            raise UserError(f"config.data.{key}: must be at least 0, got {getattr(config, key):g}")
    if config.shift_samples >= SAMPLES:
        raise UserError(f"config.data.shift_samples: must be less than the {SAMPLES} samples of a record, got {config.shift_samples}")
    for key in ("test_fraction", "valid_fraction"):
        if not 0 < getattr(config, key) < 1:
            raise UserError(f"config.data.{key}: must lie between 0 and 1, got {getattr(config, key):g}")
    if config.test_fraction + config.valid_fraction >= 1:
        raise UserError(f"config.data.test_fraction and valid_fraction: {config.test_fraction:g} + {config.valid_fraction:g} leave no "
                        "patient to train on; lower one of them")  # fmt: skip
    if not 0 <= config.hide_statics < 1:
        raise UserError(f"config.data.hide_statics: must lie in [0, 1), got {config.hide_statics:g}")
    for key in ("corrupt_sd", "gain"):
        low, high = getattr(config, key)
        if not 0 < low <= high:
            raise UserError(f"config.data.{key}: two growing numbers above 0, got {getattr(config, key)}")
    if len(config.class_names) != len(CLASSES) or len(set(config.class_names)) < len(CLASSES) or not all(config.class_names):
        raise UserError(f"config.data.class_names: {len(CLASSES)} different names in the order of the codes, got {config.class_names}")
    if not config.path and config.patients < 30:
        raise UserError(f"config.data.patients: a synthetic clinic needs at least 30 patients, got {config.patients}")
    _check_groups(config.groups)


def _check_groups(groups: dict[str, tuple[str, ...]]) -> None:
    for name, patients in groups.items():
        if name not in GROUPS:
            raise UserError(f"config.data.groups: {name!r} is no split that patients can be given to (known: {', '.join(GROUPS)})")
        if not patients:
            raise UserError(f"config.data.groups: {name!r} names no patient; leave it out to have them drawn")
    both = sorted(set(groups.get("test", ())) & set(groups.get("valid", ())))
    if both:
        raise UserError(f"config.data.groups: patient {both[0]} is in test and valid; keep each in one split")
