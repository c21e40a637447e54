"""What the four commands share: `--config.key=value`, one clear line for a user's fault, exit codes. No JAX here."""

import argparse
import errno
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtrain.errors import UserError

USER_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG}


def run(command: Callable[[Sequence[str]], int]) -> None:
    """Run a command; a UserError or a full disk is one line and exit code 2, a traceback is a bug of ours."""
    sys.unraisablehook = _unraisable
    warnings.formatwarning = _warning
    try:
        code = command(sys.argv[1:])
    except UserError as error:
        fail(str(error))
    except OSError as error:
        if error.errno not in USER_ERRNOS:
            raise
        remedy = "change its permissions or" if error.errno == errno.EACCES else "make room or"
        fail(f"{error.filename or 'file'}: {error.strerror}; {remedy} choose another folder, then repeat the command")
    except KeyboardInterrupt:
        fail("interrupted", 130)
    else:
        sys.stdout.flush()
        if code:
            sys.exit(code)


def check_new_file(output: Path, source: Path, suffixes: Sequence[str]) -> None:
    """Raises UserError where the output would be written over the input, or under a name that says something else."""
    if output.exists() and source.exists() and output.samefile(source):
        raise UserError(f"--output {output}: is the input file; give another name")
    if output.suffix not in suffixes:
        raise UserError(f"--output {output}: unknown suffix {output.suffix!r}; known are {', '.join(suffixes)}")


def _warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """What our own code warns of is for the user, who need not see where it stands."""
    return f"note: {message}\n" if category is UserWarning else f"{filename}:{lineno}: {category.__name__}: {message}\n"


def _unraisable(fault: Any) -> None:
    # When one array of a checkpoint cannot be read or written, the rest of Orbax's requests find their event loop gone:
    # pages of tracebacks around the one line that counts.
    if not (isinstance(fault.exc_value, RuntimeError) and "Event loop is closed" in str(fault.exc_value)):
        sys.__unraisablehook__(fault)


def fail(message: str, code: int = 2) -> None:
    """Say one line and leave, without waiting for threads that background libraries keep."""
    sys.stdout.flush()
    sys.stderr.write("error: " + " ".join(message.split()) + "\n")
    sys.stderr.flush()
    os._exit(code)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """(arguments, {"train.batch": "32"}): `--config.train.batch=32` or `--config.train.batch 32` beside the declared options."""
    arguments, rest = parser.parse_known_args(argv)
    overrides = {}
    words = iter(rest)
    for word in words:
        if not word.startswith("--config."):
            parser.error(f"unrecognized argument: {word}")
        key, equals, value = word.removeprefix("--config.").partition("=")
        if not equals:
            value = next(words, None)  # type: ignore[assignment]
            if value is None or value.startswith("--"):
                parser.error(f"--config.{key} needs a value: --config.{key}=VALUE")
        overrides[key] = value
    return arguments, overrides


def options(pairs: Sequence[str], flag: str = "--option", example: str = "") -> dict[str, str]:
    """{"key": "value"} of repeated `--option key=value`."""
    result = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise UserError(f"{flag} {pair}: write it as {flag} key=value{f', for example {example}' if example else ''}")
        result[key] = value
    return result
