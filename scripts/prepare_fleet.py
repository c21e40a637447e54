"""Write a fleet that is larger than memory to a folder of arrays, which runs then map into memory.

    python scripts/prepare_fleet.py --config configs/tft.py[:preset] --config.data.path=data/fleet --output data/fleet_prepared
    python -m jaxtrain.main --config configs/tft.py[:preset] --config.data.path=data/fleet_prepared --workdir runs/x

The files are read twice, one row group (block of CSV) at a time. Roles, steps, filling and features are those of the
config; a run with others is refused.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from jaxtrain import cli
from jaxtrain.data.fleet_config import DataConfig, check_config
from jaxtrain.data.fleet_prepared import prepare
from jaxtrain.data.fleet_splits import training_steps
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description="Write a fleet that is larger than memory to a folder of arrays.")
    parser.add_argument("--config", required=True, help="configs/tft.py[:preset]; change keys with --config.key=value")
    parser.add_argument("--output", type=Path, required=True, help="folder to write; must not exist")
    options, overrides = cli.parse(parser, arguments)
    values = configs.load(options.config, overrides)
    config = configs.section(DataConfig, values["data"], "data")
    check_config(config)
    if not config.path:
        raise UserError("config.data.path: unset; name the files to prepare")
    fleet = prepare(config, options.output, partial(training_steps, config))
    for note in fleet.notes:
        print(note)
    print(f"{options.output}: {len(fleet.groups)} groups, {len(fleet.real)} rows of {fleet.step_seconds} s, {fleet.real.shape[1]} columns")
    return 0


if __name__ == "__main__":
    cli.run(main)
