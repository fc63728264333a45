from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from mtf_gridsearch import _folder, _yaml
from mtf_gridsearch.errors import (
    SearchBusyError,
    SearchFolderError,
    SearchMismatchError,
)
from mtf_gridsearch.records import ExperimentRecord, GridExperiment, Status, Supply


class Named:
    """A search as the folder sees it."""

    name_key = "experiment_name"
    total = 0

    def __init__(self, name: str = "sweep", **base: Any) -> None:
        self.name = name
        self.plain: dict[str, Any] = {"name": name, "base": base or {"lr": 0.1}}

    def to_plain(self) -> dict[str, Any]:
        return self.plain

    def plan(
        self, records: Mapping[str, ExperimentRecord]
    ) -> Sequence[GridExperiment[Any]]:
        raise NotImplementedError

    def doubts(self) -> Sequence[str]:
        raise NotImplementedError

    def starts(self, status: Status, *, has_failed: bool = False) -> bool:
        raise NotImplementedError

    def open(self, folder: Path, records: Mapping[str, ExperimentRecord]) -> Supply:
        raise NotImplementedError


def hold(search: Named, where: Path, **changes: Any) -> Any:
    """Hold the folder of *search* below *where*."""
    arguments = {"experiments_dir": where, "folder": None, "new": False, **changes}
    return _folder.hold(search, **arguments)


def find(name: str, where: Path, folder: Path | None = None) -> Path | None:
    """Find the folder of the search *name* below *where*."""
    return _folder.find(name, experiments_dir=where, folder=folder)


def test_a_folder_is_made_once_and_found_again(tmp_path: Path) -> None:
    """The second run of a search uses the folder of the first, which says what it is."""
    where = tmp_path / "deep" / "experiments"
    with hold(Named(), where) as first:
        assert first.parent == where
        assert datetime.strptime(first.name, "grid_search_%Y%m%dT%H%M%S").year >= 2020  # noqa: DTZ007
        assert _yaml.load(first / "search_config.yaml") == Named().plain
        assert list(where.glob("grid_search_*")) == [first]
    with hold(Named(), where) as again:
        assert again == first
    assert find("sweep", where) == first
    assert find("other", where) is None


def test_nothing_is_found_where_nothing_is(tmp_path: Path) -> None:
    """Looking for a folder makes none."""
    assert find("sweep", tmp_path / "experiments") is None
    assert find("sweep", tmp_path, tmp_path / "mine") is None
    assert list(tmp_path.iterdir()) == []


def test_a_new_search_comes_after_all_others_whatever_the_clock_says(
    tmp_path: Path,
) -> None:
    """Its name sorts last, in the same second too, and with folders from the future."""
    future = tmp_path / "grid_search_29991231T235959"
    future.mkdir()
    (future / "search_config.yaml").write_text("{name: other, base: {}}", "utf-8")
    with hold(Named(), tmp_path) as first, hold(Named(), tmp_path, new=True) as second:
        assert first.name == "grid_search_30000101T000000"
        assert second.name == "grid_search_30000101T000001"
    assert find("sweep", tmp_path) == second


def test_digits_that_are_no_time_are_passed_over(tmp_path: Path) -> None:
    """A folder with an impossible time does not stop a new one."""
    (tmp_path / "grid_search_99999999T999999").mkdir()
    with hold(Named(), tmp_path) as folder:
        assert folder.name.startswith(f"grid_search_{datetime.now(UTC).year}")


def test_searches_of_other_names_are_left_alone(tmp_path: Path) -> None:
    """Each name has its own folder, found behind newer ones of other names."""
    with hold(Named("a"), tmp_path) as a, hold(Named("b"), tmp_path) as b:
        assert a != b
    with hold(Named("a"), tmp_path) as again:
        assert again == a


def test_what_a_kill_left_without_a_definition_is_passed_over(tmp_path: Path) -> None:
    """A folder made an instant before a kill is nobody's search."""
    (tmp_path / "grid_search_20200101T000000").mkdir()
    assert find("sweep", tmp_path) is None


def test_a_user_names_the_folder(tmp_path: Path) -> None:
    """It is made with its parents, and used again; a lock from an earlier try is fine."""
    mine = tmp_path / "a" / "b"
    mine.mkdir(parents=True)
    (mine / ".lock").touch()
    (mine / ".0123456789abcdef.tmp").touch()  # of a definition that was being written
    for _ in range(2):
        with hold(Named(), tmp_path, folder=mine) as folder:
            assert folder == mine
    assert list(tmp_path.iterdir()) == [tmp_path / "a"]


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    """Files of a stranger are not mixed with a search."""
    (tmp_path / "thesis.tex").touch()
    with (
        pytest.raises(SearchMismatchError, match=r"thesis\.tex"),
        hold(Named(), tmp_path, folder=tmp_path),
    ):
        pytest.fail("held")


def test_a_folder_of_another_search_is_refused(tmp_path: Path) -> None:
    """The error names both searches."""
    with hold(Named("a"), tmp_path, folder=tmp_path / "s"):
        pass
    with (
        pytest.raises(SearchMismatchError, match="holds the search 'a', not 'b'"),
        hold(Named("b"), tmp_path, folder=tmp_path / "s"),
    ):
        pytest.fail("held")


def test_another_base_is_refused_and_named(tmp_path: Path) -> None:
    """The error says which keys differ, the first few, and how to start anew."""
    with hold(Named(lr=0.1, model={"depth": 2}), tmp_path):
        pass
    changed = Named(lr=0.2, model={"depth": 2, "width": 3})
    with (
        pytest.raises(SearchMismatchError) as caught,
        hold(changed, tmp_path),
    ):
        pytest.fail("held")
    assert "base.lr was 0.1, is 0.2; base.model.width was absent, is 3" in str(
        caught.value
    )
    assert "--new" in str(caught.value)
    many = Named()
    many.plain["base"] = {f"k{n}": n for n in range(9)}
    with pytest.raises(SearchMismatchError, match="and 6 more"), hold(many, tmp_path):
        pytest.fail("held")
    with hold(changed, tmp_path, new=True):
        pass


def test_another_kind_of_search_is_refused(tmp_path: Path) -> None:
    """A Bayesian search does not go on in the folder of a grid."""
    with hold(Named(), tmp_path):
        pass
    other = Named()
    other.plain["bayesian"] = {"metric": "loss", "num_trials": 3}
    with (
        pytest.raises(SearchMismatchError, match="bayesian was absent"),
        hold(other, tmp_path),
    ):
        pytest.fail("held")


def test_a_bayesian_search_may_have_more_trials_and_no_other_grid(tmp_path: Path) -> None:
    """What was chosen follows from the definition, whose number of trials alone grows."""

    def bayesian(num_trials: int, values: list[int]) -> Named:
        named = Named()
        named.plain["bayesian"] = {"metric": "loss", "num_trials": num_trials}
        named.plain["grids"] = [{"lr": values}]
        return named

    for num_trials in (3, 6):
        with hold(bayesian(num_trials, [1]), tmp_path):
            pass
    with (
        pytest.raises(SearchMismatchError, match="grids was"),
        hold(bayesian(6, [1, 2]), tmp_path),
    ):
        pytest.fail("held")


def test_a_changed_grid_is_saved(tmp_path: Path) -> None:
    """A grid may change; the file then says what was run last."""
    with hold(Named(), tmp_path):
        pass
    changed = Named()
    changed.plain["grids"] = [{"lr": [1, 2]}]
    with hold(changed, tmp_path) as folder:
        assert _yaml.load(folder / "search_config.yaml") == changed.plain


def test_new_does_not_overwrite(tmp_path: Path) -> None:
    """A named folder that holds a search is not made a new one."""
    with hold(Named(), tmp_path, folder=tmp_path / "s"):
        pass
    with (
        pytest.raises(SearchFolderError, match="another folder"),
        hold(Named(), tmp_path, folder=tmp_path / "s", new=True),
    ):
        pytest.fail("held")


def test_a_second_holder_is_told_of_the_first(tmp_path: Path) -> None:
    """The error names process and host; after the first has gone, the lock is free."""
    with hold(Named(), tmp_path) as folder:
        said = json.loads((folder / ".lock").read_text("utf-8"))
        assert said["pid"] == os.getpid()
        with (
            pytest.raises(SearchBusyError, match=f"process {os.getpid()} on "),
            hold(Named(), tmp_path),
        ):
            pytest.fail("held")
        (folder / ".lock").write_text("?", "utf-8")
        with (
            pytest.raises(SearchBusyError, match="another process runs it"),
            hold(Named(), tmp_path),
        ):
            pytest.fail("held")
    with hold(Named(), tmp_path):
        pass


def test_the_kernel_frees_the_lock_of_a_killed_holder(tmp_path: Path) -> None:
    """After SIGKILL the folder can be held at once, whatever its lock file says."""
    script = (
        "import sys, time; from pathlib import Path\n"
        "from mtf_gridsearch import _lock\n"
        "with _lock.locked(Path(sys.argv[1]), '.lock'):\n"
        "    print('held', flush=True); time.sleep(600)\n"
    )
    with hold(Named(), tmp_path) as folder:
        pass
    command = [sys.executable, "-c", script, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, encoding="utf-8") as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(SearchBusyError), hold(Named(), tmp_path):
            pytest.fail("held")
        holder.kill()
        holder.wait()
    with hold(Named(), tmp_path) as again:
        assert again == folder


@pytest.mark.parametrize(
    "text", ["a: [", "- a", "base: {}", "name: [", "name: 'sweep'\na: ["]
)
def test_an_unreadable_definition_is_an_error(tmp_path: Path, text: str) -> None:
    """A newer folder that may be ours is not passed over: that would run all again."""
    with hold(Named(), tmp_path) as folder:
        pass
    (folder / "search_config.yaml").write_text(text, "utf-8")
    with pytest.raises(SearchFolderError, match=r"search_config\.yaml"):
        find("sweep", tmp_path)


def test_an_unreadable_definition_of_another_is_passed_over(tmp_path: Path) -> None:
    """A folder that says it is another's stops nobody, and a warning names it."""
    with hold(Named(), tmp_path) as folder:
        pass
    broken = tmp_path / "grid_search_20990101T000000"
    broken.mkdir()
    for text in ("name: other\na: [", 'a: 1\nname: "other"\nb: [', "name: 3"):
        (broken / "search_config.yaml").write_text(text, "utf-8")
        with pytest.warns(UserWarning, match="passed over: .*20990101T000000"):
            assert find("sweep", tmp_path) == folder
        with pytest.warns(UserWarning, match="passed over"), hold(Named(), tmp_path) as f:
            assert f == folder


def test_folders_that_cannot_be_used_are_errors(tmp_path: Path) -> None:
    """A file where a folder or a lock should be is named."""
    (tmp_path / "file").touch()
    with (
        pytest.raises(SearchFolderError, match="cannot be made"),
        hold(Named(), tmp_path / "file"),
    ):
        pytest.fail("held")
    with pytest.raises(SearchFolderError, match="cannot be read"):
        find("sweep", tmp_path / "file")
    (tmp_path / "s" / ".lock").mkdir(parents=True)
    with (
        pytest.raises(SearchFolderError, match="cannot be opened"),
        hold(Named(), tmp_path, folder=tmp_path / "s"),
    ):
        pytest.fail("held")


def test_a_file_system_without_locks_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where flock does not work, two executors could not be told apart: refused."""

    def flock(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with pytest.raises(SearchFolderError, match="cannot be locked"), ExitStack() as held:
        held.enter_context(hold(Named(), tmp_path))


def test_a_definition_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk is told of, with the name of the file."""

    def write(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(_yaml, "write_atomically", write)
    with (
        pytest.raises(
            SearchFolderError, match=r"search_config\.yaml cannot be written: No"
        ),
        hold(Named(), tmp_path),
    ):
        pytest.fail("held")


@pytest.mark.parametrize("digits", ["99991231T235959", "99999999T999999"])
def test_a_name_that_no_time_can_follow_is_no_search(tmp_path: Path, digits: str) -> None:
    """It is passed over, whatever lies there."""
    odd = tmp_path / f"grid_search_{digits}"
    odd.mkdir()
    (odd / "search_config.yaml").write_text("[", "utf-8")
    with hold(Named(), tmp_path) as folder:
        assert folder != odd
    assert find("sweep", tmp_path) == folder


def test_a_broken_newest_folder_may_be_gone_around(tmp_path: Path) -> None:
    """It may be the one that is looked for, so the error says how to name another."""
    with hold(Named(), tmp_path) as folder:
        pass
    broken = tmp_path / "grid_search_20990101T000000"
    broken.mkdir()
    (broken / "search_config.yaml").write_text("[", "utf-8")
    with (
        pytest.raises(SearchFolderError, match=r"20990101T000000: .*--folder"),
        hold(Named(), tmp_path),
    ):
        pytest.fail("held")
    with hold(Named(), tmp_path, folder=folder) as found:
        assert found == folder


def test_a_name_deep_in_the_base_is_a_value(tmp_path: Path) -> None:
    """Only the base's own experiment_name may differ; one in a section is a value as any."""
    first = Named(experiment_name="a", logging={"experiment_name": "one"})
    with hold(first, tmp_path):
        pass
    with hold(Named(experiment_name="b", logging={"experiment_name": "one"}), tmp_path):
        pass
    other = Named(experiment_name="a", logging={"experiment_name": "two"})
    with (
        pytest.raises(SearchMismatchError, match=r"base\.logging\.experiment_name was"),
        hold(other, tmp_path),
    ):
        pytest.fail("held")


def test_an_older_search_over_the_same_base_is_gone_on_with(tmp_path: Path) -> None:
    """A newer one of that name over another base is neither used nor in the way."""
    with hold(Named(lr=1), tmp_path) as first:
        pass
    with hold(Named(lr=2), tmp_path, new=True) as second:
        assert second != first
    with hold(Named(lr=1), tmp_path) as again:
        assert again == first
    with (
        pytest.raises(SearchMismatchError, match=rf"{second.name}: .*lr was 2, is 3"),
        hold(Named(lr=3), tmp_path),
    ):
        pytest.fail("held")


def test_nothing_is_left_in_a_folder_of_something_else(tmp_path: Path) -> None:
    """A folder that is refused is as it was."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with (
        pytest.raises(SearchMismatchError, match="name an empty folder"),
        hold(Named(), tmp_path, folder=tmp_path / "mine"),
    ):
        pytest.fail("held")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_another_spelling_of_an_entry_point_is_the_same(tmp_path: Path) -> None:
    """``./train.py`` is ``train.py``; another script, or null, is another base."""
    with hold(Named(entry_point="train.py"), tmp_path):
        pass
    with hold(Named(entry_point="./train.py"), tmp_path):
        pass
    for other in ("test.py", None):
        with (
            pytest.raises(SearchMismatchError, match=r"base\.entry_point was"),
            hold(Named(entry_point=other), tmp_path),
        ):
            pytest.fail("held")


def test_a_definition_that_is_no_file_is_an_error(tmp_path: Path) -> None:
    """A folder in its place says nothing of whose it is."""
    (tmp_path / "grid_search_20990101T000000" / "search_config.yaml").mkdir(parents=True)
    with pytest.raises(SearchFolderError, match=r"20990101T000000: .* cannot be read"):
        find("sweep", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "is_same"),
    [
        ("a:Config", "a:Config", True),
        ("__main__:Config", "a:Config", True),
        ("a:Config", "__main__:Config", True),
        ("a:Config", "b:Config", False),
        ("__main__:Config", "a:Other", False),
        ("a:Config", None, False),
    ],
)
def test_another_class_of_the_base_is_refused(
    tmp_path: Path,
    old: str,
    new: str | None,
    is_same: bool,  # noqa: FBT001
) -> None:
    """Equal values of two classes are two bases; a class of a script may be moved."""
    first, second = Named(), Named()
    first.plain["base_class"] = old
    if new is not None:
        second.plain["base_class"] = new
    with hold(first, tmp_path) as folder:
        pass
    if is_same:
        with hold(second, tmp_path) as again:
            assert again == folder
        return
    with (
        pytest.raises(SearchMismatchError, match=f"base_class was '{old}', is "),
        hold(second, tmp_path),
    ):
        pytest.fail("held")


def test_the_name_may_change_whatever_it_is_written_as(tmp_path: Path) -> None:
    """A base that has it under an alias goes on under another name, too."""
    for name in ("a", "b"):
        named = Named(experimentName=name, lr=0.1)
        named.name_key = "experimentName"
        with hold(named, tmp_path) as folder:
            pass
    assert folder.parent == tmp_path
    assert len(list(tmp_path.glob("grid_search_*"))) == 1
