"""Train and test every fold: python -m jaxtrain.validate --config configs/tft.py[:preset] --folds walk_forward:5 [--workdir runs/x]

    walk_forward:N   rolling origin: N test blocks in time order, each trained on what came before it
    blocked:N        N blocks with gaps; each is the test block once (uses later data: for choosing between models only)
    leave_one_out    one group left out at a time; leave_one_out:N leaves out N shares of the groups

Every fold is an ordinary run in a folder of its own below --workdir, with statistics of its own training data. The same command goes on
where it was. The table shows every fold beside its naive forecasts, then mean and standard deviation over the folds.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxtrain import cli
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError

KINDS = ("walk_forward", "blocked", "leave_one_out")


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m jaxtrain.validate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py[:preset], or the config.json of a run")
    parser.add_argument("--folds", required=True, metavar="KIND[:N]", help=f"one of {', '.join(KINDS)}, and how many")
    parser.add_argument("--workdir", type=Path, help="folder of the runs (default: runs/NAME-PRESET-KIND)")
    arguments, overrides = cli.parse(parser, argv)
    kind, n = parse_folds(arguments.folds)
    values = configs.load(arguments.config, overrides)
    workdir = arguments.workdir or Path("runs") / f"{values['name']}-{values['preset']}-{kind}"

    from jaxtrain.engine.folds import validate  # after the config's errors: this imports JAX

    validate(values, kind, n, workdir)
    return 0


def parse_folds(text: str) -> tuple[str, int | None]:
    """("walk_forward", 5) of "walk_forward:5"; None where no number is given."""
    kind, colon, count = text.partition(":")
    if kind not in KINDS:
        raise UserError(f"--folds {text}: unknown kind{configs.nearest(kind, KINDS)}")
    if colon and not (count.isdigit() and int(count) >= 2):
        raise UserError(f"--folds {text}: the number of folds must be at least 2; write it as {kind}:5")
    return kind, int(count) if colon else None


if __name__ == "__main__":
    cli.run(main)
