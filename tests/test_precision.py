"""The traffic system in lower precision: it learns, with a loss near float32's."""

from pathlib import Path

import pytest
import sixth_problem
from sixth_problem import checkpoint, rows, summary


@pytest.mark.long
def test_the_traffic_system_trains_in_bfloat16(command: sixth_problem.Command, tmp_path: Path) -> None:
    arguments = ("--config", "configs/stmgt.py:smoke", "--config.report.figures=false", "--config.data.synthetic.days=3",
                 "--config.train.duration=60st", "--config.optimizer.decay=60st")  # fmt: skip
    scores, losses = {}, {}
    for precision, stored in (("float32", "float32"), ("mixed_bfloat16", "float32"), ("bfloat16", "bfloat16")):
        workdir = tmp_path / precision
        command("main", *arguments, f"--config.train.precision={precision}", "--workdir", workdir)
        found = checkpoint(workdir / "checkpoints")
        params = {str(v.dtype) for k, v in found.items() if k.startswith("params['params']")}
        moments = {str(v.dtype) for k, v in found.items() if k.startswith("state['opt_state']") and v.dtype.kind not in "iu"}
        assert (params, moments) == ({stored}, {"float32"})
        scores[precision] = summary(workdir)["valid"]["mae"]
        losses[precision] = [r["train/loss"] for r in rows(workdir) if "train/loss" in r][-1]
    for precision in ("mixed_bfloat16", "bfloat16"):
        assert scores[precision] == pytest.approx(scores["float32"], rel=0.05)
        assert losses[precision] == pytest.approx(losses["float32"], rel=0.2)
