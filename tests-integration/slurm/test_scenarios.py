"""Experiments on the real Slurm: what becomes of them when what happens does happen.

Those that train do so with mtf-trainer. Whatever interrupted one, it ends with the bytes of
one that nothing did.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from mtf_config import ConfigurationManager
from mtf_gridsearch import (
    GridSearchExecutor,
    ParameterGrid,
    ParameterGridSearch,
    SearchResults,
    Status,
)
from mtf_slurm.launcher import SLURMLauncher
from mtf_slurm.states import JobState
from slurm.cluster import Cluster
from slurm.training import Plain, Project, trained

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.usefixtures("timed")]
# Long enough for a machine that is busy with other work, too.
SOON_S = 120
LATE_S = 300
NUM_CPUS = 32


@pytest.fixture
def project(client: Cluster, tmp_path: Path) -> Project:
    """Return a project of the test's own, whose launchers speak to the cluster."""
    assert client.conf.exists()
    return Project(tmp_path / "project")


def ended(
    launcher: SLURMLauncher, job_ids: Sequence[str], cluster: Cluster, timeout_s: float
) -> list[JobState]:
    """Return the states of jobs once they have ended."""
    states = launcher.wait(job_ids, timeout_s=timeout_s)
    assert all(state.is_final for state in states), f"{states}\n{cluster.logs()}"
    return states


def test_a_search_is_submitted_and_gathered(client: Cluster, project: Project) -> None:
    """A grid over typed configs, each a task of an array; the best, and what all used."""
    manager = ConfigurationManager(project.root)
    base = manager.create_config(
        {
            "experiment_name": "searched",
            "model": {"type": "mlp"},
            "data": {"dataset_name": "random"},
            "slurm": {"time": "5", "cpus_per_task": 1},
        }
    )
    grid = ParameterGrid("lr").add_parameter("optimizer.lr", [0.1, 0.001])
    search, launcher = ParameterGridSearch(base), project.launcher()
    folder = project.experiments / "search"
    executor = GridSearchExecutor(launcher, manager, folder=folder)
    result = executor.execute_grid_search(search, grid)
    assert result.counts == {Status.SUCCEEDED: 2}
    best = SearchResults.read(folder).best("val/loss", "min")
    assert best.parameters["optimizer.lr"] == 0.1
    [submission] = (folder / ".slurm").glob("0*")
    assert len((submission / "tasks").read_text("utf-8").splitlines()) == 2

    job_ids = [str(record.job_id) for record in result.records.values()]
    client.wait_until(
        lambda: all(
            end.cpu_s and end.max_rss_bytes for end in launcher.outcomes(job_ids)
        ),
        what="accounted",
        deadline_s=SOON_S,
    )
    again = executor.execute_grid_search(search, grid)
    assert [str(record.job_id) for record in again.records.values()] == job_ids
    for record in again.records.values():
        assert (record.attempts, record.reason) == (1, "")
        assert record.usage.wall_s
        assert record.usage.cpu_s
        assert record.usage.max_rss_bytes


def test_500_experiments_are_three_arrays(client: Cluster, project: Project) -> None:
    """Each of 500 runs once, in as many arrays as their size allows."""
    launcher = project.launcher(
        "trivial.py",
        freeze_code=False,
        max_array_size=200,
        defaults={"launch": "none"},
        setup=(),
    )
    names = [f"task_{index:03}" for index in range(500)]
    job_ids = launcher.submit_experiment_batch([*map(Plain, names)]).job_ids
    assert Counter(Counter(i.partition("_")[0] for i in job_ids).values()) == {
        200: 2,
        100: 1,
    }
    assert set(ended(launcher, job_ids, client, LATE_S)) == {JobState.SUCCEEDED}
    for name in names:
        starts = project.experiments / name / "starts"
        assert starts.read_text("utf-8") == "as submitted\n"
    again = launcher.submit_experiment_batch([*map(Plain, names)])
    assert again.job_ids == job_ids


def test_preempted_trainings_end_as_undisturbed(
    client: Cluster, project: Project, undisturbed: tuple[bytes, bytes]
) -> None:
    """Three lose their node to the high partition, warned, told or killed, and go on."""
    where = {"nodelist": "n1", "cpus_per_task": NUM_CPUS // 3, "time": "5"}
    names = ("low", "short")
    trainings = [
        Plain(name, {"gate": True, "slurm": {**where, "partition": name}})
        for name in names
    ]
    deaf = Plain("deaf", {"do": "be deaf", "slurm": where})
    launcher, other = project.launcher(), project.launcher("trivial.py")
    job_ids = launcher.submit_experiment_batch(trainings).job_ids
    job_ids.append(other.submit_single_experiment(deaf))
    for name in names:
        client.wait_until(project.waits(name), what=f"{name} waits", deadline_s=SOON_S)
    taker = {"partition": "high", "nodelist": "n1", "cpus_per_task": NUM_CPUS}
    job_ids.append(other.submit_single_experiment(Plain("taker", {"slurm": taker})))
    assert ended(launcher, job_ids, client, LATE_S) == [JobState.SUCCEEDED] * 4
    for name, word, job_id in zip(
        names, ("PREEMPTED", "REQUEUED"), job_ids, strict=False
    ):
        assert project.starts(name) == ["n1", "n1"]
        assert word in client.accounted(job_id, duplicates=True)
        assert trained(project.experiments / name) == undisturbed
    # That it was killed before it had ended is no success, whatever srun says.
    starts = (project.experiments / "deaf" / "starts").read_text("utf-8")
    assert starts == "as submitted\n" * 2


def test_training_outlives_its_node(
    client: Cluster, project: Project, undisturbed: tuple[bytes, bytes]
) -> None:
    """A node loses power in the middle of an epoch; the training goes on when it is back."""
    launcher = project.launcher()
    lost = Plain("lost", {"gate": True, "slurm": {"nodelist": "n1", "time": "5"}})
    job_id = launcher.submit_single_experiment(lost)
    client.wait_until(project.waits("lost"), what="waits", deadline_s=SOON_S)
    client.kill_node("n1")
    client.wait_for(job_id, "PENDING", LATE_S)
    client.restart_node("n1")
    assert ended(launcher, [job_id], client, LATE_S) == [JobState.SUCCEEDED]
    assert project.starts("lost") == ["n1", "n1"]
    assert "NODE_FAIL" in client.accounted(job_id, duplicates=True)
    assert trained(project.experiments / "lost") == undisturbed


def test_cancelled_training_stays_ended_and_can_go_on(
    client: Cluster, project: Project, undisturbed: tuple[bytes, bytes]
) -> None:
    """What was cancelled has saved and does not come back; submitted again it goes on."""
    launcher = project.launcher()
    experiment = Plain("cancelled", {"gate": True})
    first = launcher.submit_single_experiment(experiment)
    client.wait_until(project.waits("cancelled"), what="waits", deadline_s=SOON_S)
    launcher.cancel([first])
    assert ended(launcher, [first], client, SOON_S) == [JobState.CANCELLED]
    saved = project.experiments / "cancelled" / "checkpoints" / "latest.ckpt"
    client.wait_until(
        lambda: "step_000007" in saved.resolve().name, what="saved", deadline_s=SOON_S
    )
    second = launcher.submit_single_experiment(experiment)
    assert second != first
    states = ended(launcher, [first, second], client, SOON_S)
    assert states == [JobState.CANCELLED, JobState.SUCCEEDED]
    assert len(project.starts("cancelled")) == 2
    assert trained(project.experiments / "cancelled") == undisturbed


def test_dependencies_run_the_code_that_was_submitted(
    client: Cluster, project: Project
) -> None:
    """What waits for a job runs, or never will, as the job ends; and runs the old code."""
    launcher = project.launcher("trivial.py")

    def submit(name: str, do: str, dependency: str | None = None) -> str:
        slurm = {"dependencies": [dependency] if dependency else []}
        return launcher.submit_single_experiment(Plain(name, {"do": do, "slurm": slurm}))

    good = submit("good", "wait")
    bad = submit("bad", "fail")
    wanted = {
        submit("after_good", "succeed", f"afterok:{good}"): JobState.SUCCEEDED,
        submit("without_good", "succeed", f"afternotok:{good}"): JobState.CANCELLED,
        submit("after_bad", "succeed", f"afterok:{bad}"): JobState.CANCELLED,
        submit("without_bad", "succeed", f"afternotok:{bad}"): JobState.SUCCEEDED,
        submit("after_both", "succeed", f"afterany:{good}:{bad}"): JobState.SUCCEEDED,
    }
    (project.root / "trivial.py").write_text("raise SystemExit('edited')\n", "utf-8")
    (project.experiments / "good" / "go_on").touch()
    states = ended(launcher, [good, bad, *wanted], client, SOON_S)
    assert states == [JobState.SUCCEEDED, JobState.FAILED, *wanted.values()]
    started = {path.parent.name for path in project.experiments.glob("*/starts")}
    assert started == {"good", "bad", "after_good", "without_bad", "after_both"}


@pytest.mark.parametrize("launch", ["srun", "torchrun"])
def test_two_nodes_train_as_one_and_go_on(
    client: Cluster, project: Project, launch: str
) -> None:
    """Two nodes train one model; requeued in the middle, to the same bytes."""
    launcher = project.launcher(defaults={"nodes": 2, "time": "5", "launch": launch})
    names = ("through", "requeued")
    batch = [Plain(name, {"gate": name == "requeued"}) for name in names]
    job_ids = [launcher.submit_single_experiment(experiment) for experiment in batch]
    for rank in range(2):
        waits = project.waits("requeued", rank)
        client.wait_until(waits, what=f"rank {rank} waits", deadline_s=SOON_S)
    launcher.requeue(job_ids[1:])
    assert ended(launcher, job_ids, client, LATE_S) == [JobState.SUCCEEDED] * 2
    assert {*project.starts("through", 0), *project.starts("through", 1)} == {"n1", "n2"}
    for rank in range(2):
        assert len(project.starts("requeued", rank)) == 2
        begins = project.experiments / "requeued" / f"begins.{rank}"
        first, second = map(int, begins.read_text("utf-8").split())
        assert first == 0
        assert 7 <= second < 15  # told to, it stopped and saved, and not at its end
    through, requeued = (project.experiments / name for name in names)
    assert [trained(requeued, rank) for rank in (0, 1)] == [
        trained(through, rank) for rank in (0, 1)
    ]
    rows = (through / "metrics.jsonl").read_text("utf-8").splitlines()
    samples = [json.loads(row)["samples"] for row in rows if '"val"' in row]
    assert samples == [40, 40, 40]


def test_controller_restarts_while_jobs_are_submitted(
    client: Cluster, project: Project
) -> None:
    """A submission that loses its controller waits for it, and submits each job once."""
    launcher = project.launcher(
        "trivial.py",
        freeze_code=False,
        max_array_size=1,
        defaults={"launch": "none"},
        setup=(),
    )
    names = [f"single_{index:03}" for index in range(120)]
    folder = project.experiments / ".slurm"

    def num_submitted() -> int:
        return len([*folder.glob("*/job_id")])

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(launcher.submit_experiment_batch, [*map(Plain, names)])
        client.wait_until(lambda: num_submitted() > 5, what="begun", deadline_s=SOON_S)
        client.stop_controller()
        was_away = num_submitted() < len(names)
        client.start_controller()
        result = done.result(timeout=LATE_S)
    assert was_away
    assert not result.failed
    assert len(set(result.job_ids)) == len(names)
    states = ended(launcher, result.job_ids, client, LATE_S)
    assert set(states) == {JobState.SUCCEEDED}
    for name in names:
        starts = project.experiments / name / "starts"
        assert starts.read_text("utf-8") == "as submitted\n"


@pytest.mark.parametrize(
    ("slurm", "max_array_size", "reason"),
    [
        ({"partition": "nowhere"}, None, "invalid partition"),
        ({"qos": "tiny"}, None, "QOSMaxSubmitJobPerUserLimit"),
        ({}, 30_000, "Invalid job array"),
    ],
    ids=["partition", "qos", "array"],
)
def test_what_slurm_refuses_is_told(
    project: Project,
    slurm: dict[str, str],
    max_array_size: int | None,
    reason: str,
) -> None:
    """Each experiment that Slurm refuses has Slurm's reason; the others of its batch run."""
    num = 20_002 if max_array_size else 3
    launcher = project.launcher(
        "trivial.py", freeze_code=False, max_array_size=max_array_size
    )
    refused = [Plain(f"no_{index}", {"slurm": slurm}) for index in range(num)]
    good = Plain("good", {"slurm": {"nice": 1}})
    *rows, last = launcher.submit_experiment_batch([*refused, good])
    assert all(reason in str(row.error) for row in rows)
    assert [row.job_id for row in rows] == [None] * num
    assert last.job_id is not None
    launcher.cancel([last.job_id])
    assert len([*(project.experiments / ".slurm").glob("0*")]) == 1
