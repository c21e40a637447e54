"""Options of `predict` and `evaluate` (`--option key=value`), as the systems share them. No JAX here."""

from collections.abc import Mapping, Sequence

from jaxtrain.engine.config import nearest
from jaxtrain.errors import UserError

YES, NO = ("yes", "true", "1", ""), ("no", "false", "0")


def check(options: Mapping[str, str], known: Sequence[str]) -> None:
    """Raises UserError for an option that is not among the known ones."""
    for name in options:
        if name not in known:
            raise UserError(f"--option {name}: unknown option{nearest(name, known)}")


def switch(options: Mapping[str, str], name: str) -> bool:
    """Whether an option is on; off where it is not given. Raises UserError for another word than yes or no."""
    value = options.get(name, "no").lower()
    if value not in (*YES, *NO):
        raise UserError(f"--option {name}={value}: expected yes or no")
    return value in YES


def whole(options: Mapping[str, str], name: str, default: int, least: int = 1, *, of: str = "") -> int:
    """A whole number of at least `least`, `of` something; `default` where it is not given. Raises UserError for anything else."""
    if name not in options:
        return default
    if not options[name].isdecimal() or int(options[name]) < least:
        raise UserError(f"--option {name}={options[name]}: expected a whole number{f' of {of}' if of else ''} from {least}")
    return int(options[name])
