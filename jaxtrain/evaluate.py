"""Score a finished run: python -m jaxtrain.evaluate --workdir runs/x [--split test | --input FILE]

`--split` reads the run's own data again; `--input` takes a labelled file that the run has never seen.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from jaxtrain import cli
from jaxtrain.errors import UserError


def main(argv: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        "python -m jaxtrain.evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workdir", type=Path, required=True, help="a run folder of jaxtrain.main")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--split", default="test", help="train, valid, test, or another split of the task (default: test)")
    what.add_argument("--input", help="a labelled file in any layout that the task trains on")
    parser.add_argument("--option", action="append", default=[], metavar="KEY=VALUE", help="what the task offers, repeatable")
    parser.add_argument("--output", type=Path, help="write all scores to this .json file as well")
    arguments = parser.parse_args(argv)
    options = cli.options(arguments.option)
    if not arguments.workdir.is_dir():
        raise UserError(f"--workdir {arguments.workdir}: no such folder")
    if arguments.output and (arguments.output.suffix != ".json" or not arguments.output.parent.is_dir()):
        raise UserError(f"--output {arguments.output}: a .json file in an existing folder is needed")

    from jaxtrain.engine.config import nearest
    from jaxtrain.engine.report import score_table, write_json
    from jaxtrain.engine.run import open_run
    from jaxtrain.engine.scoring import Source
    from jaxtrain.engine.start import start_jax

    start_jax(distributed=False)
    run = open_run(arguments.workdir)
    if arguments.input:
        title, dataset = Path(arguments.input).name, run.task.labelled(arguments.input, options)
    else:
        splits = run.task.splits().named()
        if arguments.split not in splits:
            raise UserError(f"--split {arguments.split}: no such split{nearest(arguments.split, splits)}")
        title, dataset = arguments.split, splits[arguments.split]
    if len(dataset) == 0:
        raise UserError(f"{title}: holds no example to score")
    source = Source(dataset, {}, "host", run.eval_batch, run.scorer.layout)
    sums = {"model": run.scorer.model(source, run.params, run.model_state), **run.scorer.naive(source)}
    scores = {name: run.task.summarize(s) for name, s in sums.items()}
    print(score_table(f"{title}, {len(dataset):,} examples", scores, run.task.headline))
    if arguments.output:
        write_json(arguments.output, {"workdir": str(arguments.workdir), "step": run.step, "examples": len(dataset), "scores": scores})
    return 0


if __name__ == "__main__":
    cli.run(main)
