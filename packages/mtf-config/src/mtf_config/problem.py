"""One thing that is wrong with a config, as data and in words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mtf_config.origin import Origin

__all__ = ["Problem", "Severity"]

Severity = Literal["error", "warning"]
_MAX_SHOWN = 1000


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        key: Full dotted key, empty where the whole document is meant.
        place: Where the value came from; None if it stands nowhere (a missing key).
        message: What is wrong, in words.
        found: The offending value, shortened; empty if there is none to show.
        expected: What would be right; empty if *message* says it all.
        severity: Errors forbid the run, warnings do not.
    """

    key: str
    place: Origin | None
    message: str
    found: str = ""
    expected: str = ""
    severity: Severity = "error"

    def __str__(self) -> str:
        parts = [str(self.place)] if self.place is not None else []
        if self.severity == "warning":
            parts.append("warning")
        if self.key:
            parts.append(self.key)
        text = self.message
        if self.found:
            text += f", found {self.found}"
        if self.expected:
            text += f"; {self.expected}"
        return ": ".join(map(_shown, [*parts, text]))


def _shown(text: str) -> str:
    """Return *text* so that a terminal shows it: short, control characters escaped."""
    if len(text) > _MAX_SHOWN:
        text = f"{text[:_MAX_SHOWN]}..."
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
