"""A config of the evoked-response data, for tests."""

from dataclasses import replace
from typing import Any

from jaxtrain.data.evoked_config import CLASSES, DataConfig

DEFAULT = DataConfig(
    path="", patients=800, seed=42, target="clean", corrupt_sd=(0.3, 1.0), late_peak="mask", threshold="column", test_fraction=0.15,
    valid_fraction=0.20, split_seed=42, groups={}, class_names=CLASSES, balanced_sampler=False, augment=False, shift_samples=3,
    gain=(0.95, 1.05), noise_sd=0.02, statics_sd=0.05, hide_statics=0.1,
)  # fmt: skip


def config(**changes: Any) -> DataConfig:
    """The default of the specification with some keys changed."""
    return replace(DEFAULT, **changes)
