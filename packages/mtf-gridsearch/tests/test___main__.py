from __future__ import annotations

import csv
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from mtf_gridsearch import GridSearchExecutor, ParameterGrid
from mtf_gridsearch.__main__ import main

SEARCH = """\
name: digits
base: {experiment_name: digits, lr: 0.1, entry_point: train.py}
grids:
  - name: first
    parameters:
      lr: [0.1, 0.2, 0.3]
"""

SCRIPT = """\
import json, pathlib, re, sys
lr = float(re.search("^lr: (.*)$", pathlib.Path(sys.argv[1]).read_text("utf-8"), re.M)[1])
pathlib.Path("metrics.jsonl").write_text(json.dumps({"step": 1, "loss": lr}) + "\\n", "utf-8")
sys.exit("too high" if lr > 0.25 and not pathlib.Path("../../../mended").exists() else 0)
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with a search and a script, in which commands run."""
    (tmp_path / "search.yaml").write_text(SEARCH, "utf-8")
    (tmp_path / "train.py").write_text(SCRIPT, "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def folder(project: Path) -> Path:
    """Return the only folder of a search in *project*."""
    (found,) = (project / "experiments").glob("grid_search_*")
    return found


def test_a_search_is_run_repaired_and_shown(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It runs what is missing, says what failed by its exit code, and mends it."""
    assert main(["run", "search.yaml", "--max-running", "2"]) == 1
    said = capsys.readouterr()
    assert said.out == f"experiments/{folder(project).name}: 1 failed, 2 succeeded\n"
    assert "exit code 1: too high" in said.err
    assert main(["run", "search.yaml"]) == 1
    (project / "mended").touch()
    assert main(["run", "search.yaml", "--only", "failed", "--time-limit", "60"]) == 0
    assert capsys.readouterr().out.endswith(": 3 succeeded\n")

    assert (
        main(["results", str(folder(project)), "--metric", "loss", "--csv", "t.csv"]) == 0
    )
    assert "3 experiments: 3 succeeded" in capsys.readouterr().out
    with open("t.csv", encoding="utf-8", newline="") as file:  # noqa: PTH123 -- where it is
        assert [row["param.lr"] for row in csv.DictReader(file)] == ["0.1", "0.2", "0.3"]

    other = ["run", "search.yaml", "--folder", "other", "--devices", "0,1"]
    assert main([*other, "--memory-limit", str(1 << 40)]) == 1
    found = str(folder(project))
    assert main(["compare", found, "other", "--metric", "loss", "--rows", "2"]) == 0
    assert "3 combinations in both" in capsys.readouterr().out


def test_parquet_is_written(project: Path) -> None:
    """A table with types is written next to what is shown."""
    pytest.importorskip("pyarrow")
    main(["run", "search.yaml"])
    assert main(["results", str(folder(project)), "--parquet", "t.parquet"]) == 0
    assert (project / "t.parquet").stat().st_size


def test_a_plan_touches_nothing(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It prints what would be done, once."""
    assert main(["plan", "search.yaml"]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("search digits: 3 experiments, 3 to start\n")
    assert said.err == ""
    assert sorted(p.name for p in project.iterdir()) == ["search.yaml", "train.py"]


def test_base_and_entry_point_may_stand_apart(project: Path) -> None:
    """A base from its own file, and what to run from the command line."""
    (project / "base.yaml").write_text("{experiment_name: digits, lr: 0}", "utf-8")
    (project / "grid.yaml").write_text(SEARCH.replace("base:", "#"), "utf-8")
    command = ["run", "grid.yaml", "--base", "base.yaml", "--entry-point", "train.py"]
    assert main([*command, "--new", "--experiments", "e"]) == 1
    assert main([*command, "--new", "--experiments", "e"]) == 1
    assert len(list((project / "e").glob("grid_search_*"))) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["run", "gone.yaml"], "gone.yaml: cannot be read"),
        (["run", "search.yaml", "--entry-point", "gone.py"], "gone.py"),
        (["run", "search.yaml", "--max-running", "0"], "max_running"),
        (["results", "."], "journal.jsonl"),
        (["compare", ".", ".", "--metric", "m"], "journal.jsonl"),
    ],
)
@pytest.mark.usefixtures("project")
def test_what_cannot_be_done_is_said(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error, and exit code 2."""
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith("mtf_gridsearch: ")
    assert said in error


@pytest.mark.usefixtures("project")
def test_nothing_to_run_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Without an entry point anywhere, the error says where one may stand."""
    text = SEARCH.replace(", entry_point: train.py", "")
    Path("search.yaml").write_text(text, "utf-8")
    assert main(["run", "search.yaml"]) == 2
    said = capsys.readouterr().err
    assert "--entry-point train.py" in said
    assert "`entry_point: train.py` into search.yaml" in said


def test_another_script_and_a_smaller_grid(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A script given by the file runs; another is refused; what a grid lost is apart."""
    text = SEARCH.replace(", entry_point: train.py", "") + "entry_point: train.py\n"
    (project / "search.yaml").write_text(text, "utf-8")
    (project / "mended").touch()
    assert main(["run", "search.yaml"]) == 0
    (project / "other.py").write_text(SCRIPT, "utf-8")
    assert main(["run", "search.yaml", "--entry-point", "other.py"]) == 2
    assert "--new" in capsys.readouterr().err
    (project / "search.yaml").write_text(text.replace("0.2, ", ""), "utf-8")
    assert main(["run", "search.yaml"]) == 0
    said = capsys.readouterr().out
    assert said.endswith(": 2 succeeded; no longer in the grid: 1 succeeded\n")
    saved = folder(project) / "search_config.yaml"
    assert main(["run", str(saved), "--folder", str(folder(project))]) == 0


@pytest.mark.usefixtures("project")
def test_a_rule_of_the_file_stops_what_is_bad(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The section `early_stopping` is obeyed, and a misspelt metric told of."""
    rule = "early_stopping: {rule: successive_halving, metric: los, mode: min, min_step: 1}\n"
    Path("search.yaml").write_text(SEARCH + rule, "utf-8")
    Path("mended").touch()
    assert main(["run", "search.yaml", "--max-running", "1"]) == 0
    assert "did you mean 'loss'" in capsys.readouterr().err
    Path("search.yaml").write_text(SEARCH + rule.replace("min_step: 1", "a: 1"), "utf-8")
    assert main(["run", "search.yaml"]) == 2


@pytest.mark.usefixtures("project")
def test_a_bayesian_search_of_the_file(capsys: pytest.CaptureFixture[str]) -> None:
    """The section `bayesian` makes trials of the grids, as many as it says."""
    pytest.importorskip("optuna")
    section = "bayesian: {metric: loss, mode: min, num_trials: 2, sampler: random}\n"
    Path("search.yaml").write_text(SEARCH + section, "utf-8")
    Path("mended").touch()
    assert main(["plan", "search.yaml"]) == 0
    assert "2 experiments, chosen as it runs" in capsys.readouterr().out
    assert main(["run", "search.yaml"]) == 0
    assert capsys.readouterr().out.endswith(": 2 succeeded\n")


def test_an_interrupt_has_its_own_exit_code(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C is 130, as shells have it, and no traceback."""

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mtf_gridsearch._folder.hold", interrupted)
    assert main(["run", "search.yaml"]) == 130
    assert project.exists()


def test_it_is_a_program(project: Path) -> None:
    """`python -m mtf_gridsearch` runs, and lists its commands."""
    shown = subprocess.run(
        [sys.executable, "-m", "mtf_gridsearch", "--help"],
        capture_output=True,
        encoding="utf-8",
        check=True,
        cwd=project,
    )
    assert all(word in shown.stdout for word in ("run", "plan", "results", "compare"))


def test_the_definition_that_is_saved_is_run_again(project: Path) -> None:
    """With its rule of early stopping, and what it runs."""
    rule = "early_stopping: {rule: median, metric: loss, mode: min}\n"
    (project / "search.yaml").write_text(SEARCH + rule, "utf-8")
    (project / "mended").touch()
    assert main(["run", "search.yaml"]) == 0
    saved = folder(project) / "search_config.yaml"
    before = saved.read_text("utf-8")
    assert "early_stopping:" in before
    for where in (folder(project), project / "experiments" / "other"):
        assert main(["run", str(saved), "--folder", str(where)]) == 0
    assert saved.read_text("utf-8") == before


def test_what_was_saved_of_a_model_is_run_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file of a search over a pydantic model is read by its class, and goes on."""
    (project / "my_configs.py").write_text(
        "from pydantic import BaseModel\nclass Config(BaseModel):\n"
        "    experiment_name: str = 'typed'\n    entry_point: str = 'train.py'\n"
        "    lr: float = 0.1\n    kw: dict[str, int] = {}\n",
        "utf-8",
    )
    monkeypatch.syspath_prepend(project)
    config = importlib.import_module("my_configs").Config()
    try:
        grid = ParameterGrid("g").add_parameter("kw.x", [1]).add_parameter("lr", ["0.2"])
        result = GridSearchExecutor().execute_grid_search(config, grid)
        assert main(["run", str(result.folder / "search_config.yaml")]) == 0
    finally:
        del sys.modules["my_configs"]
    assert folder(project).name == result.folder.name
    assert (folder(project) / "journal.jsonl").read_text("utf-8").count("submitted") == 1
