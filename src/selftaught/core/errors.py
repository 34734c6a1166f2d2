"""Errors that a person reads: what happened, what was expected, why, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USAGE = 2
"""Wrong usage or bad input."""
EXIT_DATA = 3
"""Data refused: too many broken files."""
EXIT_NONFINITE = 4
"""A loss, gradient or weight became NaN or infinite."""
EXIT_DISK = 5
"""Disk full."""
EXIT_LOCKED = 6
"""Another live process works on the same run."""
EXIT_RANK = 7
"""Another process of the same training was lost."""
EXIT_SIGHUP = 129
"""Stopped by SIGHUP (the terminal closed) after saving."""
EXIT_SIGINT = 130
"""Stopped by SIGINT after saving."""
EXIT_SIGTERM = 143
"""Stopped by SIGTERM after saving."""


class SelftaughtError(Exception):
    """An error whose text is meant for the user; `exit_code` is what the command returns."""

    def __init__(
        self, what: str, *, expected: str = "", why: str = "", do: str = "", exit_code: int = EXIT_USAGE
    ) -> None:
        super().__init__(what)
        self.what = what
        self.expected = expected
        self.why = why
        self.do = do
        self.exit_code = exit_code

    def __str__(self) -> str:
        lines = [self.what]
        lines += [
            f"{name}: {text}"
            for name, text in (("expected", self.expected), ("why", self.why), ("do", self.do))
            if text
        ]
        return "\n".join(lines)

    def __reduce__(self) -> tuple[object, ...]:
        # The default rebuilds from positional args only and would lose every keyword when an error leaves a worker.
        return (_rebuild, (type(self), self.what, self.expected, self.why, self.do, self.exit_code))


def _rebuild(
    kind: type[SelftaughtError], what: str, expected: str, why: str, do: str, exit_code: int
) -> SelftaughtError:
    error = kind.__new__(kind)
    SelftaughtError.__init__(error, what, expected=expected, why=why, do=do, exit_code=exit_code)
    return error


class DataError(SelftaughtError):
    """Something is wrong with the user's data."""


class ConfigError(SelftaughtError):
    """A setting is unknown, has the wrong type, or does not fit the others."""


class RunError(SelftaughtError):
    """A run folder cannot be read, written or locked."""


class NumericError(SelftaughtError):
    """Numbers became NaN or infinite."""

    def __init__(
        self, what: str, *, expected: str = "", why: str = "", do: str = "", exit_code: int = EXIT_NONFINITE
    ) -> None:
        super().__init__(what, expected=expected, why=why, do=do, exit_code=exit_code)


class RankError(SelftaughtError):
    """Another process of the same training was lost, or trains something else."""

    def __init__(
        self, what: str, *, expected: str = "", why: str = "", do: str = "", exit_code: int = EXIT_RANK
    ) -> None:
        super().__init__(what, expected=expected, why=why, do=do, exit_code=exit_code)


def suggest(word: str, words: Iterable[str]) -> str:
    """Return " Did you mean 'x'?" for the nearest of `words`, or "" when none is near."""
    by_lower = {candidate.lower(): candidate for candidate in words}
    near = difflib.get_close_matches(word.lower(), list(by_lower), n=1, cutoff=0.6)
    return f" Did you mean '{by_lower[near[0]]}'?" if near else ""
