from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.errors import SnapshotError, SubmissionError, TemplateError
from mtf_slurm.follow.nodes import NodeFailure, record
from mtf_slurm.git import GitManager
from mtf_slurm.testing import FakeSlurm

Make = Callable[..., Any]


def test_a_folder_from_which_nothing_can_be_imported(
    make_launcher: Make, tmp_path: Path
) -> None:
    """A colon would split PYTHONPATH, and other code might run: it is refused, and named."""
    place = tmp_path / "a:b"
    place.mkdir()
    with pytest.raises(SubmissionError, match=r"a:b: ':' in a path splits PYTHONPATH"):
        make_launcher(experiments_folder=place)
    with pytest.raises(SubmissionError, match="a:b"):
        make_launcher().submit([], folder=place)
    make_launcher(experiments_folder=place, freeze_code=False)


def test_nodes_that_are_left_out(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """They join those that an experiment leaves out; a name that is none is refused."""
    slurm.configure(is_held=True)
    asked: list[Path] = []

    def bad_nodes(folder: Path) -> list[str]:
        asked.append(folder)
        return ["n2", "n1", "n2"]

    launcher = make_launcher(excluded_nodes=bad_nodes)
    batch = [experiment("a"), experiment("b", exclude="n[7-9]")]
    assert launcher.submit_experiment_batch(batch).failed == []
    options = [task["options"]["exclude"] for task in slurm.tasks().values()]
    assert options == ["n1,n2", "n[7-9],n1,n2"]
    assert asked == [project / "experiments"]
    with pytest.raises(ValueError, match="no name of a node"):
        make_launcher(excluded_nodes=lambda _: ["n1;x"]).submit_experiment_batch(batch)


def test_nodes_that_failed_are_left_out_by_default(
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    tmp_path: Path,
) -> None:
    """What a monitor saw fail three times is not asked for again, unless that is wanted."""
    slurm.configure(is_held=True)
    folder = project / "experiments"
    (folder / ".slurm").mkdir(parents=True)
    now_s = time.time()  # noqa: TID251 -- a date
    failures = [
        NodeFailure(node="n3", at_s=now_s - ago_s, job_id=str(ago_s), reason="")
        for ago_s in (100, 200, 300)
    ]
    record(folder, failures)
    make_launcher().submit_single_experiment(experiment("a"))
    every = make_launcher(excluded_nodes=lambda _: ())
    every.submit_single_experiment(experiment("b"))
    make_launcher().submit_single_experiment(experiment("c", nodelist="n3"))
    path = tmp_path / "mine.sbatch"
    path.write_text("#!/bin/bash\nexec {{ run }}\n", encoding="utf-8")
    bare = make_launcher(template_path=path, defaults={"requeue": True})
    [row] = bare.submit_experiment_batch([experiment("d")])
    assert "exclude" not in (row.error or "")
    options = [task["options"].get("exclude") for task in slurm.tasks().values()]
    assert options[:3] == ["n3", None, None]


def test_what_a_template_passes_over_is_refused(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """A setting that the script would not have is an error, not silently lost."""
    slurm.configure(is_held=True)
    path = tmp_path / "mine.sbatch"
    path.write_text(
        "#!/bin/bash\n#SBATCH --job-name=x\nexec {{ run }}\n", encoding="utf-8"
    )
    launcher = make_launcher(template_path=path)
    batch = [experiment("a", qos="high"), experiment("b"), experiment("c")]
    result = launcher.submit_experiment_batch(batch, after={"c": {"b": "afterok"}})
    assert [row.job_id for row in result] == [None, "1", None]
    said = [row.error or "" for row in result.failed]
    assert "slurm.qos is set, and the template does not write {{ qos }}" in said[0]
    assert "slurm.dependencies is set" in said[1]
    assert slurm.tasks()["1"]["name"] == "b"
    with pytest.raises(TemplateError, match=r"slurm\.gpus_per_node .*{{ gpus }} or"):
        launcher.generate_sbatch_script(experiment("d", gpus_per_node=1))


def test_experiments_within_the_project_are_not_frozen(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Wherever they lie, a snapshot has the code, and not what experiments made."""
    slurm.configure(is_held=True)
    launcher = make_launcher(experiments_folder=project / "runs[1]")
    launcher.submit_single_experiment(experiment("a"))
    launcher.submit_single_experiment(experiment("b"))
    said = json.loads((project / "runs[1]/b/code.json").read_text(encoding="utf-8"))
    assert said["dirty"] == []


def test_a_container_whose_folders_it_cannot_be_given(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, tmp_path: Path
) -> None:
    """A comma would be read as two folders, so the experiment is refused."""
    launcher = make_launcher(experiments_folder=tmp_path / "a,b")
    [row] = launcher.submit_experiment_batch([experiment("e", container="image.sif")])
    assert "':' or ','" in (row.error or "")
    assert slurm.calls() == []


def test_a_folder_that_is_given_later_is_not_frozen(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """Also one that `submit` is given, or that was asked about before, is left out."""
    slurm.configure(is_held=True)
    for name in "ab":
        folder = project / "runs" / name
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text('{"do": "succeed"}', encoding="utf-8")
    asked_first, at_once = make_launcher(), make_launcher()
    assert asked_first.latest(["a"], folder=project / "runs") == [None]
    for launcher, name in ((at_once, "a"), (asked_first, "b")):
        launcher.submit([experiment(name)], folder=project / "runs")
        text = (project / "runs" / name / "code.json").read_text(encoding="utf-8")
        assert json.loads(text)["dirty"] == []


@pytest.mark.parametrize("name", ["link/runs", "project/runs", "project/linked"])
def test_experiments_by_any_path_are_not_frozen(
    name: str,
    make_launcher: Make,
    experiment: Make,
    slurm: FakeSlurm,
    project: Path,
    tmp_path: Path,
) -> None:
    """Through a link, as a link or by its name, a snapshot has nothing of their folder."""
    slurm.configure(is_held=True)
    (tmp_path / "link").symlink_to(project)
    (tmp_path / "elsewhere").mkdir()
    (project / "linked").symlink_to(tmp_path / "elsewhere")
    (project / ".git" / "info" / "exclude").write_text("", encoding="utf-8")
    if not name.endswith("linked"):
        (project / "linked").unlink()
    folder = tmp_path / name
    for each in "ab":
        launcher = make_launcher(experiments_folder=folder)
        launcher.submit_single_experiment(experiment(each))
    said = json.loads((folder / "b" / "code.json").read_text(encoding="utf-8"))
    assert said["dirty"] == []


@pytest.mark.parametrize("is_link", [False, True])
def test_experiments_that_are_the_project(
    *, is_link: bool, make_launcher: Make, project: Path, tmp_path: Path
) -> None:
    """The code cannot be frozen without itself: where experiments are the project is told."""
    (tmp_path / "link").symlink_to(project)
    folder = tmp_path / "link" if is_link else project
    with pytest.raises(SnapshotError, match="name another experiments_folder"):
        make_launcher(experiments_folder=folder)
    assert make_launcher(experiments_folder=tmp_path)
    assert make_launcher(experiments_folder=folder, freeze_code=False)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"setup": ["a", "b\x00"]}, "line 2 of setup has a control character"),
        ({"setup": ["a\r"]}, "line 1 of setup"),
        ({"python": ""}, "python is '': .* give an absolute path"),
        ({"python": "bin/python"}, "python is 'bin/python': jobs run elsewhere"),
        ({"python": "/a\nb"}, "python is"),
    ],
)
def test_what_jobs_cannot_run(
    make_launcher: Make, given: dict[str, Any], said: str
) -> None:
    """A line of setup or an interpreter that no job could use is refused at once."""
    with pytest.raises(ValueError, match=said):
        make_launcher(**given)
    assert make_launcher(setup=["if x;\tthen :; fi"], python="python3")


def test_what_freezes_the_code_by_choice_stays(
    make_launcher: Make, experiment: Make, slurm: FakeSlurm, project: Path
) -> None:
    """A manager that was given is asked to leave out nothing more than it does."""
    slurm.configure(is_held=True)
    folder = project / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text('{"do": "succeed"}', encoding="utf-8")
    launcher = make_launcher(git=GitManager(project))
    launcher.submit([experiment("a")], folder=project / "runs")
    said = json.loads((folder / "code.json").read_text(encoding="utf-8"))
    assert "? runs/a/config.yaml" in said["dirty"]
