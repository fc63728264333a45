"""Which experiments wait for which: checked, ordered, and in Slurm's words.

``{"train": {"prepare": "afterok"}}`` says that *train* begins when *prepare* has succeeded;
with ``afternotok`` when it has failed, with ``afterany`` when it has ended. Nothing here asks
Slurm: what has a job, and how that is, is told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from typing import NamedTuple, TypeAlias

from mtf_slurm.errors import SubmissionError
from mtf_slurm.states import JobState

__all__ = ["After", "Kept", "checked", "levels", "resolved"]

After: TypeAlias = Mapping[str, Mapping[str, str]]
"""By experiment: for which others it waits, and for what of them."""

_KINDS = ("afterany", "afternotok", "afterok")


class Kept(NamedTuple):
    """The job that an experiment has, and how that is."""

    job_id: str
    state: JobState


def checked(after: After | None, names: Sequence[str]) -> After:
    """Return *after*, which can be used for a batch of experiments.

    Raises:
        ValueError: If one that waits is not in the batch, a word is none of the three, or
            they wait for each other.
    """
    after = after or {}
    if strange := sorted(after.keys() - set(names)):
        msg = f"{', '.join(strange)}: in `after`, and not in the batch"
        raise ValueError(msg)
    for name, others in after.items():
        for other, kind in others.items():
            if kind not in _KINDS:
                msg = (
                    f"{name} waits for {other} with {kind!r}: one of {', '.join(_KINDS)}"
                )
                raise ValueError(msg)
    try:
        TopologicalSorter(after).prepare()
    except CycleError as error:
        cycle = " -> ".join(reversed(error.args[1]))
        msg = f"experiments wait for each other: {cycle}"
        raise ValueError(msg) from error
    return after


def levels(names: Sequence[str], after: After) -> list[list[str]]:
    """Return *names* in parts, none of which waits for its own or for a later one.

    >>> levels(["c", "b", "a"], {"b": {"a": "afterok"}, "c": {"x": "afterok"}})
    [['c', 'a'], ['b']]
    """
    order = {name: at for at, name in enumerate(names)}
    graph = {name: [o for o in after.get(name, ()) if o in order] for name in names}
    sorter = TopologicalSorter(graph)
    sorter.prepare()
    parts = []
    while sorter.is_active():
        ready = sorter.get_ready()
        parts.append(sorted(ready, key=order.__getitem__))
        sorter.done(*ready)
    return parts


def resolved(
    name: str,
    others: Mapping[str, str],
    kept: Mapping[str, Kept],
    refused: Mapping[str, str],
) -> tuple[str, ...]:
    """Return what an experiment waits for, as ``slurm.dependencies`` has it.

    What has come true already is left out.

    Args:
        name: Which.
        others: For which it waits, and for what of them.
        kept: The jobs that there are.
        refused: Why others have none.

    Raises:
        SubmissionError: If another has no job, or what is waited for cannot come true.
    """
    found = []
    for other, kind in others.items():
        if other in refused:
            reason = f"it waits for {other}, which was not submitted: {refused[other]}"
            raise SubmissionError(name, reason)
        if other not in kept:
            reason = f"it waits for {other}, which has no job here: submit it, too"
            raise SubmissionError(name, reason)
        job_id, state = kept[other]
        if not state.is_final:
            if "." in job_id:
                reason = (
                    f"it waits for {other}, which shares a task with others (num_packed): "
                    f"submit it when {other} has ended"
                )
                raise SubmissionError(name, reason)
            found.append(f"{kind}:{job_id}")
            continue
        has_succeeded = state is JobState.SUCCEEDED
        if kind != "afterany" and has_succeeded != (kind == "afterok"):
            reason = (
                f"it waits for {other} ({kind}), which has {state.value}: job {job_id}"
            )
            if kind == "afterok":
                reason += f"; submit {other} again with it"
            raise SubmissionError(name, reason)
    return tuple(sorted(found))
