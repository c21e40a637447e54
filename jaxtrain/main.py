"""Train, then test: python -m jaxtrain.main --config configs/stmgt.py[:preset] [--workdir runs/x] [--config.key=value ...]

The same command in the same folder goes on where it was; a finished folder shows its table and exits.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxtrain import cli
from jaxtrain.engine import config as configs


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser("python -m jaxtrain.main", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, help="configs/NAME.py[:preset], or the config.json of a run")
    parser.add_argument("--workdir", type=Path, help="the run folder (default: runs/NAME-PRESET)")
    arguments, overrides = cli.parse(parser, argv)
    values = configs.load(arguments.config, overrides)
    workdir = arguments.workdir or Path("runs") / f"{values['name']}-{values['preset']}"

    from jaxtrain.engine.train import train_and_test  # after the config's errors: this imports JAX

    train_and_test(values, workdir)
    return 0


if __name__ == "__main__":
    cli.run(main)
