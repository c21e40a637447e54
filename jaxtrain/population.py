"""Train several runs in one program: python -m jaxtrain.population --config configs/stmgt.py[:preset] --members 5 [--workdir runs/x]

    --members N        N seeds, from train.seed on
    --rates 1e-3,3e-3  one member for each learning rate, all with the same seed

Small models leave most of an accelerator idle: members trained together cost far less than one after the other. Each of them
is an ordinary run in a folder of its own below --workdir, equal (but for rounding) to the run that its config.json describes.
The same command goes on where it was. The table shows every member, mean and standard deviation, and the naive forecasts.
"""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from jaxtrain import cli
from jaxtrain.engine import config as configs
from jaxtrain.errors import UserError


def main(argv: Sequence[str]) -> int:
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m jaxtrain.population", description=__doc__, formatter_class=style)
    parser.add_argument("--config", required=True, help="configs/NAME.py[:preset], or the config.json of a run")
    parser.add_argument("--members", type=int, help="how many seeds")
    parser.add_argument("--rates", help="learning rates, separated by commas")
    parser.add_argument("--workdir", type=Path, help="folder of the runs (default: runs/NAME-PRESET-population)")
    arguments, overrides = cli.parse(parser, argv)
    rates = parse_rates(arguments.rates) if arguments.rates else []
    if bool(rates) == bool(arguments.members):
        raise UserError("name either --members N or --rates A,B,...")
    if arguments.members is not None and arguments.members < 1:
        raise UserError(f"--members {arguments.members}: must be at least 1")
    values = configs.load(arguments.config, overrides)
    if rates and not values["optimizer"]["lr"] > 0:
        raise UserError("config.optimizer.lr: must be above 0 for --rates, which scale it")
    workdir = arguments.workdir or Path("runs") / f"{values['name']}-{values['preset']}-population"

    from jaxtrain.engine.population import train_population  # after the config's errors: this imports JAX

    train_population(values, arguments.members or len(rates), rates, workdir)
    return 0


def parse_rates(text: str) -> list[float]:
    """[0.001, 0.003] of "1e-3,3e-3"; raises UserError for anything else, and for a rate that comes twice."""
    try:
        rates = [float(word) for word in text.split(",")]
    except ValueError:
        raise UserError(f"--rates {text}: write learning rates with commas between them, for example 1e-3,3e-3") from None
    if not all(0 < rate < math.inf for rate in rates):
        raise UserError(f"--rates {text}: learning rates must be finite and above 0")
    if len({f"{rate:g}" for rate in rates}) < len(rates):
        raise UserError(f"--rates {text}: two rates are alike to six digits")
    return rates


if __name__ == "__main__":
    cli.run(main)
