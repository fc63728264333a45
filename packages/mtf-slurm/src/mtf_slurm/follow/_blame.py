"""Find out which nodes failed under jobs, and note them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from mtf_slurm._answers import Answer
from mtf_slurm._outcomes import task_of
from mtf_slurm.command import Commands
from mtf_slurm.follow import nodes
from mtf_slurm.follow._jobs import Followed
from mtf_slurm.follow.changes import NOT_LAUNCHED, Seen
from mtf_slurm.follow.nodes import NodeFailure
from mtf_slurm.query import Row
from mtf_slurm.states import JobState

__all__ = ["Blame"]

_log = logging.getLogger("mtf_slurm.follow")
_ANSWERS = 3  # accounting is late


class Blame:
    """Takes answers, and writes the nodes that failed into the folders of the jobs.

    Attributes:
        suspects: Jobs that came back: what ended their last run is asked of accounting.
    """

    def __init__(self) -> None:
        self._left: dict[str, int] = {}

    @property
    def suspects(self) -> frozenset[str]:
        """The jobs whose earlier runs are to be asked for."""
        return frozenset(self._left)

    def suspect(self, job_id: str) -> None:
        """Let the earlier runs of a job be asked for."""
        self._left[job_id] = _ANSWERS

    def take(
        self,
        answer: Answer,
        failed: Iterable[str],
        seen: Mapping[str, Seen],
        jobs: Mapping[str, Followed],
        now_s: float,
        commands: Commands,
    ) -> None:
        """Note what an answer tells.

        Args:
            answer: Of Slurm.
            failed: Jobs that a node's failure ended, and that did not come back.
            seen: How jobs are.
            jobs: Which there are.
            now_s: The date, for failures that have none, in seconds since the epoch.
            commands: Ask for what nodes are.
        """
        runs = [(i, row) for i in failed if (row := seen[i].row) is not None]
        earlier = {row.job_id: row for row in answer.earlier}
        for job_id in self._left:
            row = earlier.get(task_of(job_id))
            if row is not None and _is_of_node(row, seen.get(job_id, Seen())):
                runs.append((job_id, row))
        self._left = {
            job_id: left - (job_id in answer.asked)
            for job_id, left in self._left.items()
            if left > (job_id in answer.asked)
        }
        blamed: dict[str, tuple[str, ...]] = {}
        for job_id, row in runs:
            folder = jobs[job_id].folder
            if folder is None:
                continue
            if row.nodes not in blamed:
                blamed[row.nodes] = nodes.blamed(commands, row.nodes)
            at_s = row.end_s or now_s
            reason = row.reason or row.state
            failures = [
                NodeFailure(node=node, at_s=at_s, job_id=job_id, reason=reason)
                for node in blamed[row.nodes]
            ]
            try:
                nodes.record(folder, failures)
            except OSError as error:
                _log.warning("%s: failed nodes are not noted: %s", folder, error)


def _is_of_node(run: Row, seen: Seen) -> bool:
    """Return whether it was the node that ended a run."""
    if run.state is JobState.NODE_FAILED:
        return True
    return seen.row is not None and seen.row.reason == NOT_LAUNCHED
