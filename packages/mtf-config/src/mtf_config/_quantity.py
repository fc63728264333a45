"""Slurm's spellings of times and memory sizes.

Source: Slurm 22.05, ``sbatch(1)``, ``--time`` and ``--mem``.
"""

from __future__ import annotations

import re

__all__ = ["memory_bytes", "time_s"]

_CLOCK = re.compile(r"(?:(\d{1,6})-)?(\d{1,6})(?::(\d{1,6}))?(?::(\d{1,6}))?", re.ASCII)
_MEMORY = re.compile(r"(\d{1,9})([KMGT]?)", re.ASCII)
_UNIT_BYTES = {"K": 2**10, "": 2**20, "M": 2**20, "G": 2**30, "T": 2**40}


def time_s(text: str) -> int:
    """Return the seconds in ``minutes[:seconds]``, ``[days-]hours:minutes:seconds`` and kin.

    Raises:
        ValueError: If *text* is none of Slurm's forms, or no time at all.

    >>> time_s("30"), time_s("12:00:00"), time_s("1-6")
    (1800, 43200, 108000)
    """
    match = _CLOCK.fullmatch(text)
    if match is None:
        message = 'write minutes, "HH:MM:SS" or "D-HH:MM:SS"'
        raise ValueError(message)
    days, *clock = match.groups()
    first, second, third = (int(part) if part else 0 for part in clock)
    if days is not None:
        total = int(days) * 86400 + first * 3600 + second * 60 + third
    elif clock[2] is not None:
        total = first * 3600 + second * 60 + third
    else:
        total = first * 60 + second
    if total == 0:
        message = "a time limit of zero would end the job at once"
        raise ValueError(message)
    return total


def memory_bytes(text: str) -> int:
    """Return the bytes in ``512M``, ``32G``; without a unit, mebibytes.

    Raises:
        ValueError: If *text* is not a size above zero.

    >>> memory_bytes("32G") == 32 * 2**30
    True
    """
    match = _MEMORY.fullmatch(text)
    if match is None or int(match[1]) == 0:
        message = 'write a size such as "32G" or "512M"'
        raise ValueError(message)
    return int(match[1]) * _UNIT_BYTES[match[2]]
