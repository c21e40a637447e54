"""The embedded data on their grid, features included, built once per process and config."""

import functools

from jaxtrain.data import fleet_electricity, fleet_synthetic
from jaxtrain.data.fleet_config import DataConfig
from jaxtrain.data.fleet_grid import Fleet, build


class _Key:
    """A config that can be looked up: configs hold dicts, which are not hashable."""

    def __init__(self, config: DataConfig) -> None:
        self.config, self.text = config, repr(config)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Key) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def fleet(config: DataConfig) -> Fleet:
    """The data of `config.synthetic`. Raises UserError where the config asks for columns that they do not have."""
    return _built(_Key(config))


@functools.lru_cache(maxsize=2)
def _built(key: _Key) -> Fleet:
    kinds = {"fleet": fleet_synthetic.columns, "electricity": fleet_electricity.columns}
    return build(key.config, kinds[key.config.synthetic.kind](key.config))
