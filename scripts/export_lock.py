"""Write the pins of uv.lock, with their hashes, to a file that fits every site.

Leaves out what a site chooses for itself (torch and the CUDA parts it brings) and every
address: the file names versions and hashes, never the place they come from.

Usage: ``python scripts/export_lock.py requirements.lock``, run by ``nox -s lock``.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

HEADER = """\
# Written by `nox -s lock`; do not edit. Constraints, not requirements: see
# docs/decisions/0003-no-lock-with-addresses.md. torch and its CUDA parts are left out.
"""
SITES_CHOICE = re.compile(r"(torch|triton|(nvidia|cuda)-[a-z0-9-]+)==")
EXPORT = (
    *("uv", "export", "--frozen", "--format=requirements.txt", "--all-packages"),
    *(
        "--all-extras",
        "--all-groups",
        "--no-emit-workspace",
        "--no-header",
        "--no-annotate",
    ),
)


def pins(exported: str) -> Iterator[str]:
    """Yield each pin of *exported*, its hashes on lines of their own, unless a site's.

    Raises:
        ValueError: If a line is anything but a pin with hashes, as an address would be.
    """
    for pin in exported.replace("\\\n", " ").splitlines():
        requirement, *hashes = re.split(r"\s+--hash=", pin.strip())
        if not re.match(r"[a-z0-9-]+==", requirement) or "://" in pin or not hashes:
            msg = f"not a pin with hashes: {pin[:200]}"
            raise ValueError(msg)
        if not SITES_CHOICE.match(requirement):
            yield " \\\n    --hash=".join((requirement, *sorted(hashes))) + "\n"


def main(target: Path) -> None:
    """Export uv.lock to *target*."""
    done = subprocess.run(EXPORT, check=True, stdout=subprocess.PIPE, encoding="utf-8")
    target.write_text(HEADER + "".join(pins(done.stdout)), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
