"""Why jobs failed and what they used, asked of launchers that tell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtf_gridsearch.journal import Journal
from mtf_gridsearch.launcher import Launcher, Outcome
from mtf_gridsearch.records import Usage

__all__ = ["account", "outcomes"]


def outcomes(launcher: Launcher, job_ids: Sequence[str]) -> list[tuple[str, Usage]]:
    """Return of each job why it failed and what it used; nothing where that is not told.

    Raises:
        Exception: If the launcher cannot tell now.
    """
    ask: Callable[[Sequence[str]], Sequence[Outcome]] | None
    ask = getattr(launcher, "outcomes", None)
    if ask is None or not job_ids:
        return [("", Usage())] * len(job_ids)
    told = zip(job_ids, ask(job_ids), strict=True)
    return [
        (
            outcome.reason,
            Usage(
                wall_s=outcome.wall_s,
                cpu_s=outcome.cpu_s,
                max_rss_bytes=outcome.max_rss_bytes,
            ),
        )
        for _, outcome in told
    ]


def account(journal: Journal, launcher: Launcher) -> None:
    """Note what jobs used of which that was not known when they ended.

    A cluster's accounting tells some time after the end. What is not told now may be when
    the search is run again.

    Raises:
        SearchFolderError: If the journal cannot be written.
    """
    none = Usage()
    open_ = {
        name: record.job_id
        for name, record in journal.records.items()
        if record.job_id is not None
        and record.ended_at is not None
        and record.usage == none
    }
    try:
        told = outcomes(launcher, list(open_.values()))
    except Exception:  # noqa: BLE001 -- whatever is the launcher's: it is not needed
        return
    pairs = zip(open_, told, strict=True)
    journal.used({name: usage for name, (_, usage) in pairs if usage != none})
