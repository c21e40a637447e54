"""Which patients teach and which are scored: drawn by class, test patients first, or named."""

import numpy as np

from jaxtrain.data.evoked_config import GROUPS, DataConfig
from jaxtrain.data.evoked_records import Records
from jaxtrain.errors import UserError

NAMES = ("train", "valid", "test")
LEAST_PATIENTS = 3  # of a class: one for each split
MANY_PATIENTS = 6  # a class with so many gives 2 to each scored split


def split_records(config: DataConfig, found: Records) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sorted record numbers (int64) of train, valid and test; no patient in two. Raises UserError for a split without records."""
    label = modal_class(found)
    named = {name: _named(found, name, patients) for name, patients in config.groups.items()}
    if len(named) < len(GROUPS):
        _check_classes(config, found, label)
    rng = np.random.default_rng(config.split_seed)
    part = np.zeros(len(found.patients), int)  # position in NAMES
    fractions = {"test": config.test_fraction, "valid": config.valid_fraction}
    present = np.unique(found.patient)
    order = rng.permutation(present)  # the same for every preset, so that test is, whatever the share of valid
    for name in NAMES[:0:-1]:
        chosen = named.get(name)
        if chosen is None:
            chosen = _drawn(order[~np.isin(order, _taken(part, named))], label, label[order], fractions[name])
        part[chosen] = NAMES.index(name)
    rows = tuple(np.flatnonzero(part[found.patient] == number) for number in range(len(NAMES)))
    for name, some in zip(NAMES, rows, strict=True):
        if not len(some):
            raise UserError(f"{found.where}: the {name} split has no record; name fewer patients in data.groups, or change "
                            "data.test_fraction and data.valid_fraction")  # fmt: skip
    return rows[0], rows[1], rows[2]


def modal_class(found: Records) -> np.ndarray:
    """(P,) int64 most frequent known class of each patient, the lowest of equals; -1 without any."""
    counts = np.zeros((len(found.patients), found.label.max(initial=0) + 1), int)
    known = found.label >= 0
    np.add.at(counts, (found.patient[known], found.label[known]), 1)
    return np.where(counts.any(1), counts.argmax(1), -1)


def _named(found: Records, name: str, patients: tuple[str, ...]) -> np.ndarray:
    unknown = sorted(set(patients) - set(found.patients.tolist()))
    if unknown:
        raise UserError(f"{found.where}: data.groups {name!r}: no patient {unknown[0]}; the file has "
                        f"{', '.join(found.patients[:5])}{', ...' if len(found.patients) > 5 else ''}")  # fmt: skip
    return np.flatnonzero(np.isin(found.patients, patients))


def _taken(part: np.ndarray, named: dict[str, np.ndarray]) -> np.ndarray:
    """Patients of another split already, or named for one."""
    return np.concatenate([np.flatnonzero(part), *named.values()])


def _drawn(free: np.ndarray, label: np.ndarray, all_labels: np.ndarray, fraction: float) -> np.ndarray:
    """The first of every class in the order of `free`: its share of all patients, at least 1, or 2 of a class of 6."""
    chosen = []
    for one in np.unique(all_labels):
        count = int((all_labels == one).sum())
        wanted = max(2 if count >= MANY_PATIENTS else 1, round(fraction * count))
        chosen.append(free[label[free] == one][:wanted])
    return np.concatenate(chosen)


def _check_classes(config: DataConfig, found: Records, label: np.ndarray) -> None:
    for one, count in zip(*np.unique(label[np.unique(found.patient)], return_counts=True), strict=True):
        if 0 <= one and count < LEAST_PATIENTS:
            raise UserError(f"{found.where}: class {config.class_names[one]} has {count} patients, {LEAST_PATIENTS} are needed (one a "
                            "split); leave its records out, or name the patients of test and valid in data.groups")  # fmt: skip
