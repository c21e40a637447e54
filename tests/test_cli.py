"""What all commands share: one line for a user's fault, notes without a place in the code, outputs that destroy nothing."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest

from jaxtrain import cli, predict
from jaxtrain.errors import UserError


def test_a_warning_for_the_user_is_one_line_without_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)  # put back afterwards
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)

    def command(arguments: object) -> int:
        assert warnings.formatwarning("odd file", UserWarning, "a.py", 3) == "note: odd file\n"
        assert warnings.formatwarning("old", DeprecationWarning, "a.py", 3) == "a.py:3: DeprecationWarning: old\n"
        return 0

    cli.run(command)


def test_what_may_not_be_opened_is_about_permissions() -> None:
    text = "from jaxtrain import cli\ndef f(a): raise PermissionError(13, 'Permission denied', 'there')\ncli.run(f)"
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "there: Permission denied; change its permissions or choose another" in done.stderr


def test_an_output_is_never_the_input(tmp_path: Path) -> None:
    source = tmp_path / "a.parquet"
    source.write_bytes(b"x")
    (tmp_path / "link.parquet").symlink_to(source)
    for name, message in (("a.parquet", "is the input file"), ("link.parquet", "is the input file"), ("b.txt", "unknown suffix '.txt'")):
        with pytest.raises(UserError, match=message):
            predict.check_output(tmp_path / name, source)
    predict.check_output(tmp_path / "b.parquet", source)


def test_a_table_is_not_written_over_a_folder_or_where_none_can_be(tmp_path: Path) -> None:
    (tmp_path / "a.csv").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        predict.write_table(tmp_path / "a.csv", {"x": np.zeros(2)})
    with pytest.raises(UserError, match="no file can be made in"):
        predict.write_table(tmp_path / "none" / "b.csv", {"x": np.zeros(2)})
