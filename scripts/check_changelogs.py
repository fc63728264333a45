"""Check that the newest entry of each package's changelog is its version.

Usage: ``python scripts/check_changelogs.py``, run by ``nox -s lint``. Prints each problem
and exits 1 if there is one.
"""

from __future__ import annotations

import itertools
import re
import sys
import tomllib
from collections.abc import Iterator
from datetime import date
from pathlib import Path

PACKAGES = Path(__file__).parents[1] / "packages"
ENTRY = re.compile(r"^## \[(?P<version>[^\]]+)\] - (?P<date>\S+)$", re.MULTILINE)
CHANGES = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def problems(changelog: str, version: str) -> Iterator[str]:
    """Yield what is wrong with *changelog* as that of a package at *version*."""
    entries = ENTRY.findall(changelog)
    if not entries:
        yield "has no entry of the form `## [1.2.3] - 2026-01-31`"
        return
    if entries[0][0] != version:
        yield f"its newest entry is {entries[0][0]}, the package's version {version}"
    for number, day in entries:
        try:
            date.fromisoformat(day)
        except ValueError:
            yield f"{number} is dated {day}, which is no day"
    for (newer, after), (older, before) in itertools.pairwise(entries):
        if after < before:
            yield f"{newer} stands above {older} and is dated before it"
    for heading in sorted(set(re.findall(r"^### (.+)$", changelog, re.MULTILINE))):
        if heading not in CHANGES:
            yield f"`### {heading}` is none of {', '.join(sorted(CHANGES))}"


def main() -> int:
    """Check every package; return the exit status."""
    found = []
    for pyproject in sorted(PACKAGES.glob("*/pyproject.toml")):
        changelog = pyproject.with_name("CHANGELOG.md")
        name = changelog.relative_to(PACKAGES.parent)
        if not changelog.is_file():
            found.append(f"{name}: missing")
            continue
        version = tomllib.loads(pyproject.read_text("utf-8"))["project"]["version"]
        texts = problems(changelog.read_text("utf-8"), version)
        found += [f"{name}: {text}" for text in texts]
    print(*found, sep="\n", end="\n" if found else "")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
