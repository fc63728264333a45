"""How well jobs used what they asked for: CPU, memory, GPUs, time.

    report = efficiency(job_ids)
    print(report.table())

Accounting is asked once. What it did not measure is None, not zero: sites choose what they
account, and steps of less than some seconds often have no memory. CPU time is that of all
steps. Memory is the most that one step held, of all its tasks together (``TRESUsageInTot``;
where that is missing, the largest task times their number, which may be too much). Of GPUs,
Slurm keeps the last sample of how busy they were, and no history; that was read from the
manual, and not tried on a cluster with GPUs.

Source: Slurm 22.05.8, ``sacct(1)``, and what it writes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from mtf_slurm import query
from mtf_slurm._replies import cells_of, expanded
from mtf_slurm.command import Commands
from mtf_slurm.errors import UnreadableReplyError
from mtf_slurm.states import JobState, from_slurm

__all__ = ["Efficiency", "EfficiencyReport", "efficiency"]

_FORMAT = (
    "JobID",
    *("State", "ExitCode", "ElapsedRaw", "TimelimitRaw", "AllocCPUS", "NNodes"),
    *("TotalCPU", "ReqMem", "AllocTRES", "MaxRSS", "NTasks"),
    "TRESUsageInTot",
)
_SHOWN = 10
_MOST_TASKS = 100  # of more, accounting is asked for whole arrays
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40, "P": 2**50}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)([KMGTP]?)")
_TIME = re.compile(r"(?:(\d+)-)?(?:(\d+):)?(\d+):(\d+(?:\.\d+)?)")


@dataclass(frozen=True, kw_only=True, slots=True)
class Efficiency:
    """What one job, or all of several, asked for and used. None is: not accounted.

    Attributes:
        job_id: Which; empty for several.
        state: How it is; None for several.
        said: Slurm's own words for that, such as ``OUT_OF_MEMORY``; empty for several.
        exit_code: As Slurm has it, status and signal: ``1:0``; empty for several.
        elapsed_s: How long it ran, in whole seconds; the sum of all.
        time_limit_s: How long it was allowed to; None for no limit, too.
        num_cpus: CPUs that it had; None for several.
        cpu_asked_s: Seconds of CPU that it had: CPUs times *elapsed_s*.
        cpu_used_s: Seconds of CPU that its processes used.
        mem_asked_bytes: Memory that it had, on all nodes; the largest of several.
        mem_used_bytes: Memory that it used, at most; the largest of several.
        num_gpus: GPUs that it had; None for several.
        gpu_asked_s: Seconds of GPU that it had.
        gpu_used_s: Of these, in which they were busy.
    """

    job_id: str
    state: JobState | None
    said: str
    exit_code: str
    elapsed_s: float
    time_limit_s: float | None
    num_cpus: int | None
    cpu_asked_s: float | None
    cpu_used_s: float | None
    mem_asked_bytes: int | None
    mem_used_bytes: int | None
    num_gpus: int | None
    gpu_asked_s: float | None
    gpu_used_s: float | None

    @property
    def time(self) -> float | None:
        """The part of the time limit that it ran; 1 is all."""
        return _part(self.elapsed_s, self.time_limit_s)

    @property
    def cpu(self) -> float | None:
        """The part of its CPU time that it used."""
        return _part(self.cpu_used_s, self.cpu_asked_s)

    @property
    def mem(self) -> float | None:
        """The part of its memory that it used."""
        return _part(self.mem_used_bytes, self.mem_asked_bytes)

    @property
    def gpu(self) -> float | None:
        """The part of its GPU time that it used."""
        return _part(self.gpu_used_s, self.gpu_asked_s)


@dataclass(frozen=True, kw_only=True, slots=True)
class EfficiencyReport:
    """What jobs asked for and used.

    Attributes:
        jobs: One row each of those that accounting knows and that have begun, in order.
        missing: The ids of all others.
        names: Of experiments, by id, for the table.
    """

    jobs: tuple[Efficiency, ...]
    missing: tuple[str, ...] = ()
    names: Mapping[str, str] | None = None

    @property
    def total(self) -> Efficiency:
        """All jobs together: times are sums, of memory the largest.

        A part is that of those jobs alone of which both numbers are known.
        """
        time, cpu, gpu = (
            [(a, b) for a, b in pairs if a is not None and b is not None]
            for pairs in (
                [(job.time_limit_s, job.elapsed_s) for job in self.jobs],
                [(job.cpu_asked_s, job.cpu_used_s) for job in self.jobs],
                [(job.gpu_asked_s, job.gpu_used_s) for job in self.jobs],
            )
        )
        most = max(self.jobs, key=lambda job: job.mem or 0.0, default=None)
        return Efficiency(
            job_id="",
            state=None,
            said="",
            exit_code="",
            elapsed_s=sum(job.elapsed_s for job in self.jobs),
            time_limit_s=sum(a for a, _ in time) if len(time) == len(self.jobs) else None,
            num_cpus=None,
            cpu_asked_s=sum(a for a, _ in cpu) if cpu else None,
            cpu_used_s=sum(b for _, b in cpu) if cpu else None,
            mem_asked_bytes=most.mem_asked_bytes if most else None,
            mem_used_bytes=most.mem_used_bytes if most else None,
            num_gpus=None,
            gpu_asked_s=sum(a for a, _ in gpu) if gpu else None,
            gpu_used_s=sum(b for _, b in gpu) if gpu else None,
        )

    def table(self) -> str:
        """Return all rows as text: asked for, used, and the part in per cent."""
        names = self.names or {}
        head = ("job", "experiment", "state", "time", "CPU", "memory", "GPU")
        rows = [head] + [
            (job.job_id, names.get(job.job_id, ""), str(job.state), *_cells(job))
            for job in self.jobs
        ]
        if len(self.jobs) > 1:
            rows.append(("all", "", "", *_cells(self.total)))
        used = [i for i in range(len(head)) if any(row[i] for row in rows[1:])]
        widths = {i: max(len(row[i]) for row in rows) for i in used}
        lines = [
            "  ".join(row[i].ljust(widths[i]) for i in used).rstrip() for row in rows
        ]
        if self.missing:
            few = [*self.missing[:_SHOWN], *["..."][: len(self.missing) > _SHOWN]]
            lines.append(
                f"{len(self.missing)} not accounted, or not begun: {', '.join(few)}"
            )
        return "\n".join(lines)


def efficiency(
    job_ids: Iterable[str],
    *,
    names: Mapping[str, str] | None = None,
    commands: Commands | None = None,
) -> EfficiencyReport:
    """Ask accounting what jobs used; of what came back, of the last run.

    Args:
        job_ids: Of jobs and tasks; ``123_4.1`` counts as its task.
        names: Of experiments, by id.
        commands: What asks.

    Raises:
        SchedulerUnreachableError: If accounting cannot be asked.
        SchedulerCommandError: If there is none here, or it refuses to answer.
        UnreadableReplyError: If its answer cannot be parsed.
    """
    commands = commands or Commands()
    tasks = list(dict.fromkeys(i.partition(".")[0] for i in job_ids if query.base_of(i)))
    bases = sorted({base for i in tasks if (base := query.base_of(i))}, key=int)
    asked = bases if len(tasks) > _MOST_TASKS else tasks
    lines: dict[str, list[dict[str, str]]] = {}
    for part in query.chunks(asked):
        argv = (
            *("sacct", "--noheader", "--parsable2"),
            *(f"--format={','.join((*_FORMAT, 'JobID'))}", f"--jobs={part}"),
        )
        for cells in cells_of(argv, query.run(commands, argv), len(_FORMAT)):
            line = dict(zip(_FORMAT, cells, strict=True))
            job_id, _, step = cells[0].partition(".")
            if not step:
                for task in expanded(job_id):
                    lines[task] = [line]
            elif job_id in lines:
                lines[job_id].append(line)
    try:
        found = {i: _of_job(i, *lines[i]) for i in tasks if i in lines}
    except ValueError as error:
        raise UnreadableReplyError(("sacct",), str(error)) from error
    jobs = tuple(job for job in found.values() if job is not None)
    known = {job.job_id for job in jobs}
    named = {i.partition(".")[0]: name for i, name in (names or {}).items()}
    missing = tuple(i for i in tasks if i not in known)
    return EfficiencyReport(jobs=jobs, missing=missing, names=named)


def _of_job(
    job_id: str, line: Mapping[str, str], *steps: Mapping[str, str]
) -> Efficiency | None:
    elapsed_s = float(line["ElapsedRaw"] or 0)
    cpus = int(line["AllocCPUS"] or 0)
    if not cpus or (elapsed_s <= 0 and not line["AllocTRES"]):
        return None  # it did not begin
    limit = line["TimelimitRaw"]  # or UNLIMITED, Partition_Limit
    tres = _pairs(line["AllocTRES"])
    num_gpus = _gpus(tres)
    # Of a job that runs, no step has ended, and nothing is known yet.
    cpu_used_s = _seconds(line["TotalCPU"]) if steps else None
    asked = _bytes(tres.get("mem", "")) or _asked_mem(line, cpus)
    used = [mem for step in steps if (mem := _step_mem(step))]
    busy_s = [s for step in steps if (s := _busy_s(step, num_gpus)) is not None]
    return Efficiency(
        job_id=job_id,
        state=from_slurm(line["State"], line["ExitCode"]),
        said=line["State"],
        exit_code=line["ExitCode"],
        elapsed_s=elapsed_s,
        time_limit_s=int(limit) * 60.0 if limit.isdecimal() else None,
        num_cpus=cpus,
        cpu_asked_s=cpus * elapsed_s,
        cpu_used_s=cpu_used_s,
        mem_asked_bytes=asked,
        mem_used_bytes=max(used, default=None),
        num_gpus=num_gpus,
        gpu_asked_s=num_gpus * elapsed_s if num_gpus else None,
        gpu_used_s=sum(busy_s) if busy_s else None,
    )


def _step_mem(step: Mapping[str, str]) -> int | None:
    if mem := _bytes(_pairs(step["TRESUsageInTot"]).get("mem", "")):
        return mem
    largest = _bytes(step["MaxRSS"])
    return largest * int(step["NTasks"] or 1) if largest else None


def _busy_s(step: Mapping[str, str], num_gpus: int) -> float | None:
    """Return the seconds of GPU that a step used, from the per cent of all its tasks."""
    percent = _pairs(step["TRESUsageInTot"]).get("gres/gpuutil")
    if percent is None or not num_gpus:
        return None
    num_busy = min(num_gpus, float(percent.rstrip("%")) / 100)
    return num_busy * float(step["ElapsedRaw"] or 0)


def _gpus(tres: Mapping[str, str]) -> int:
    """Return a number of GPUs; sites may account them by type alone.

    >>> _gpus({"gres/gpu": "4", "gres/gpu:a100": "4"}), _gpus({"gres/gpu:a100": "2"})
    (4, 2)
    """
    if "gres/gpu" in tres:
        return int(tres["gres/gpu"])
    return sum(int(n) for name, n in tres.items() if name.startswith("gres/gpu:"))


def _asked_mem(line: Mapping[str, str], cpus: int) -> int | None:
    """Return what was asked for; before Slurm 21.08 with ``n`` or ``c``: a node's, a CPU's."""
    text = line["ReqMem"]
    each = {"n": int(line["NNodes"] or 1), "c": cpus}.get(text[-1:], 1)
    size = _bytes(text.rstrip("nc"))
    return size * each if size else None


def _pairs(text: str) -> dict[str, str]:
    """Return a list of TRES by kind.

    >>> _pairs("cpu=2,gres/gpu=4,mem=500M")
    {'cpu': '2', 'gres/gpu': '4', 'mem': '500M'}
    """
    parts = (part.partition("=") for part in text.split(",") if part)
    return {name: value for name, _, value in parts}


def _bytes(text: str) -> int | None:
    """Return a size; None for none.

    >>> _bytes("435228K"), _bytes("1.50G"), _bytes(""), _bytes("0")
    (445673472, 1610612736, None, None)
    """
    match = _SIZE.fullmatch(text)
    size = float(match[1]) * _UNITS[match[2]] if match else 0
    return int(size) or None


def _seconds(text: str) -> float | None:
    """Return a time of CPU; None for none.

    >>> _seconds("00:02.187"), _seconds("1-02:03:04"), _seconds("")
    (2.187, 93784.0, None)
    """
    match = _TIME.fullmatch(text)
    if match is None:
        return None
    days, hours, minutes, seconds = match.groups()
    return (
        int(days or 0) * 86400
        + int(hours or 0) * 3600
        + int(minutes) * 60
        + float(seconds)
    )


def _part(used: float | None, asked: float | None) -> float | None:
    return None if used is None or not asked else used / asked


def _cells(job: Efficiency) -> Iterator[str]:
    yield _cell(_clock(job.elapsed_s), _clock(job.time_limit_s), job.time)
    yield _cell(_clock(job.cpu_used_s), _clock(job.cpu_asked_s), job.cpu)
    yield _cell(_size(job.mem_used_bytes), _size(job.mem_asked_bytes), job.mem)
    yield _cell(_clock(job.gpu_used_s), _clock(job.gpu_asked_s), job.gpu)


def _cell(used: str, asked: str, part: float | None) -> str:
    if not used and not asked:
        return ""
    percent = "" if part is None else f" {part:.0%}"
    return f"{used or '?'} of {asked or '?'}{percent}"


def _clock(seconds: float | None) -> str:
    """Return a time as people write it.

    >>> _clock(59.6), _clock(90061)
    ('0:01:00', '25:01:01')
    """
    if seconds is None:
        return ""
    minutes, whole = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{whole:02}"


def _size(size: int | None) -> str:
    """Return a size as people write it.

    >>> _size(445673472), _size(2**50)
    ('425.0M', '1024.0T')
    """
    if size is None:
        return ""
    unit = next((u for u in "TGM" if size >= _UNITS[u]), "K")
    return f"{size / _UNITS[unit]:.1f}{unit}"
