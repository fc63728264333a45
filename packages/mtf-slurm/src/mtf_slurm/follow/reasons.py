"""Why a job waits, or ended as it did: Slurm's codes in words, and what one can do.

    >>> print(explain("QOSMaxGRESPerUser"))
    its QOS limits the GPUs and other GRES of each user: wait for your own jobs to end, ask \
for less, or use another QOS

Source: Slurm 22.05.8, ``squeue(1)``, JOB REASON CODES; the names of limits in its library;
https://slurm.schedmd.com/resource_limits.html.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["Explanation", "explain"]


@dataclass(frozen=True, slots=True)
class Explanation:
    """One of Slurm's codes, in words.

    Attributes:
        code: Slurm's; empty where it says none.
        sentence: What it means; empty where it says none.
        advice: What one can do; empty if that is nothing but to wait.
    """

    code: str
    sentence: str
    advice: str = ""

    def __str__(self) -> str:
        return f"{self.sentence}: {self.advice}" if self.advice else self.sentence


_HOLD = "`scontrol release` lets it go"
_ADMIN = "ask the administrators"
_RESUBMIT = "cancel it and submit it with what the site allows"

_TABLE = {
    # ---------------------------------------------------- in the queue
    "Priority": ("jobs with a higher priority are before it", "wait, or ask for less"),
    "Resources": (
        "it is next, and waits for nodes, CPUs, GPUs or memory to become free",
        "wait, or ask for less",
    ),
    "WaitingForScheduling": ("the scheduler has not looked at it yet", ""),
    "SchedDefer": ("the scheduler looks at it later, as the site chose", ""),
    "Cleaning": ("it came back, and its last run is still being cleaned up", ""),
    "Prolog": ("the site's preparations for it are still running", ""),
    "BeginTime": (
        "it may not begin yet; one that came back waits for some time, too",
        "",
    ),
    "Dependency": ("it waits for another job", ""),
    "DependencyNeverSatisfied": (
        "it waits for a job which ended in another way than it needs",
        "cancel it; submit it again when that job has succeeded",
    ),
    "JobArrayTaskLimit": (
        "as many tasks of its array run as max_running allows",
        "wait, or raise `ArrayTaskThrottle` by `scontrol update`",
    ),
    "Licenses": ("it waits for a license", ""),
    "Reservation": ("it waits for its reservation to begin", ""),
    "ReservationDeleted": ("its reservation is gone", _RESUBMIT),
    "DeadLine": ("it cannot end before its deadline any more", "cancel it"),
    "BurstBufferOperation": ("an operation of the burst buffer failed", _ADMIN),
    "BurstBufferResources": ("it waits for room in the burst buffer", ""),
    "BurstBufferStageIn": ("its files are being copied to the burst buffer", ""),
    "FedJobLock": ("another cluster of the federation decides about it", ""),
    "NodesReconfig": ("its nodes are being set up again", ""),
    # ---------------------------------------------------- held
    "JobHeldUser": ("you hold it", _HOLD),
    "JobHeldAdmin": (
        "an administrator holds it, or Slurm does after it could not begin",
        f"{_ADMIN}, or `scontrol release` it",
    ),
    "JobHoldMaxRequeue": ("it came back too often, and is held", _HOLD),
    "JobLaunchFailure": (
        "it could not be started: by a file system, a missing program or the node",
        "look at its folder and the node's state",
    ),
    # ---------------------------------------------------- cannot run as it is
    "BadConstraints": (
        "no node can ever give what it asks for",
        "cancel it; ask for a constraint, memory or GPUs that one node has",
    ),
    "PartitionNodeLimit": (
        "it asks for more nodes than its partition allows, or its nodes are down",
        _RESUBMIT,
    ),
    "PartitionTimeLimit": (
        "its time limit is longer than its partition allows",
        "shorten it by `scontrol update TimeLimit`, or submit it again",
    ),
    "InvalidAccount": ("its account is not valid any more", _RESUBMIT),
    "InvalidQOS": ("its QOS is not valid any more", _RESUBMIT),
    "AccountNotAllowed": ("its partition does not take its account", _RESUBMIT),
    "QOSNotAllowed": ("its partition or account does not take its QOS", _RESUBMIT),
    # ---------------------------------------------------- the site
    "PartitionDown": ("its partition is down", f"wait, or {_ADMIN}"),
    "PartitionInactive": ("its partition starts no jobs now", f"wait, or {_ADMIN}"),
    "NodeDown": ("a node that it needs, or ran on, is down", f"wait, or {_ADMIN}"),
    "ReqNodeNotAvail": (
        "a node that it needs is in use, reserved, drained or down, or serviced soon",
        "shorten its time limit, name no nodes, or wait",
    ),
    "FrontEndDown": ("no front end node is there to start it", _ADMIN),
    "PowerNotAvail": ("there is not enough power to start nodes", ""),
    "PowerReserved": ("the power for its nodes is reserved", ""),
    "SystemFailure": ("Slurm, a file system or the network failed", _ADMIN),
    # ---------------------------------------------------- limits
    "AssociationJobLimit": (
        "your account has as many jobs as it may",
        "wait for them to end",
    ),
    "AssociationResourceLimit": (
        "your account uses all that it may",
        "wait, or ask for less",
    ),
    "AssociationTimeLimit": ("your account has used up its time", _ADMIN),
    "QOSJobLimit": ("its QOS has as many jobs as it may", "wait, or use another QOS"),
    "QOSResourceLimit": ("its QOS uses all that it may", "wait, or use another QOS"),
    "QOSTimeLimit": ("its QOS has used up its time", "use another QOS"),
    "QOSUsageThreshold": ("its QOS has been used above its threshold", "wait"),
    # ---------------------------------------------------- ended
    "NonZeroExitCode": ("its program ended with an error", "look at its .err file"),
    "TimeLimit": ("it reached its time limit", "raise it, or let it continue"),
    "OutOfMemory": ("it used more memory than it asked for", "ask for more memory"),
    "InactiveLimit": ("it did nothing for too long", ""),
    "RaisedSignal": ("a signal ended its program", "look at its .err file"),
    "MaxRequeue": ("it came back as often as it may", ""),
}
# What Slurm writes in the place of a code.
_TEXTS = {
    "launch failed requeued held": (
        "it could not be started on its node, came back and is held",
        f"{_HOLD}; if it happens again on that node, exclude the node",
    ),
    "job requeued in held state": ("it was requeued, and is held", _HOLD),
    "nodes required for job are down": (
        "nodes that it needs are down, drained or kept for jobs of other partitions",
        "wait, name no nodes, or ask for less",
    ),
}
_LIMIT = re.compile(
    r"(Assoc|QOS)(Grp|Max|Min)"
    r"(Billing|BB|CPU|Cpu|Energy|GRES|Jobs?|License|Memory|Mem|Node|SubmitJobs?|Unknown"
    r"|WallDuration|Wall)"
    r"(RunMinutes|Minutes)?(?:Per(Job|Node|User|Account))?(?:Limit|NotSatisfied)?"
)
_THINGS = {
    "BB": "burst buffers",
    "Billing": "billing units",
    "CPU": "CPUs",
    "Energy": "energy",
    "GRES": "GPUs and other GRES",
    "Job": "running jobs",
    "License": "licenses",
    "Mem": "memory",
    "Node": "nodes",
    "SubmitJob": "jobs that wait or run",
    "Unknown": "resources",
    "Wall": "time",
}


def explain(code: str) -> Explanation:
    """Return what a code means; of one that is not known, that Slurm says so.

    Args:
        code: As ``squeue`` has it: ``Priority``, or with more behind it, as
            ``ReqNodeNotAvail, UnavailableNodes:n[1-3]``.

    >>> explain("ReqNodeNotAvail, UnavailableNodes:n3").sentence
    'a node that it needs is in use, reserved, drained or down, or serviced soon'
    >>> str(explain("SomethingNew")), str(explain(""))
    ("Slurm says 'SomethingNew'", '')
    """
    code = code.strip().strip("()")
    if not code or code == "None":
        return Explanation("", "")
    word = re.split(r"[,: ]", code, maxsplit=1)[0]
    if word in _TABLE:
        return Explanation(code, *_TABLE[word])
    for text, words in _TEXTS.items():
        if code.replace("_", " ").lower().startswith(text):
            return Explanation(code, *words)
    if match := _LIMIT.fullmatch(word):
        return _limit(code, match)
    return Explanation(code, f"Slurm says {code!r}")


def _limit(code: str, match: re.Match[str]) -> Explanation:
    owner, kind, thing, minutes, each = match.groups()
    known = {name.lower(): words for name, words in _THINGS.items()}
    words = known[_singular(thing.lower())]
    if minutes:
        words = f"minutes of {words}"
        if minutes == "RunMinutes":
            words += " that running jobs may still use"
    whose = "its QOS" if owner == "QOS" else "your account"
    if kind == "Min":
        sentence = f"it asks for less than {whose} demands of {words}"
        return Explanation(code, sentence, "ask for more, or use another QOS")
    other = "use another QOS" if owner == "QOS" else "use another account"
    if kind == "Grp":
        sentence = f"{whose} limits the {words} of all its jobs together"
        return Explanation(code, sentence, f"wait, ask for less, or {other}")
    if each == "User" or (each is None and thing in {"Jobs", "SubmitJob", "Job"}):
        sentence = f"{whose} limits the {words} of each user"
        advice = f"wait for your own jobs to end, ask for less, or {other}"
        return Explanation(code, sentence, advice)
    sentence = (
        f"it asks for more {words} than {whose} allows each {(each or 'job').lower()}"
    )
    return Explanation(code, sentence, f"cancel it; ask for less, or {other}")


def _singular(thing: str) -> str:
    short = {"memory": "mem", "wallduration": "wall", "submitjobs": "submitjob"}
    return short.get(thing, "job" if thing == "jobs" else thing)
