import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mtf_config.__main__ import main

GOOD_FILE = "experiment_name: a\nmodel: {type: m}\ndata: {dataset_name: d}\n"


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a good and a bad config."""
    Path(tmp_path, "good.yaml").write_text(GOOD_FILE, "utf-8")
    Path(tmp_path, "warned.yaml").write_text(GOOD_FILE + "optimizer: {lr: 1}\n", "utf-8")
    Path(tmp_path, "bad.yaml").write_text(GOOD_FILE + "sede: 1\n", "utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(
    *arguments: str, stdout: int = subprocess.PIPE
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "mtf_config", *arguments],
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        check=False,
    )


def test_validate_reports_every_file(capsys: pytest.CaptureFixture[str]) -> None:
    """Each file gets its verdict and its problems; one that is wrong decides."""
    assert main(["validate", "good.yaml", "bad.yaml", "warned.yaml"]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "good.yaml: valid",
        "bad.yaml: not valid",
        "  bad.yaml:4:1: sede: no such key; did you mean seed?",
        "warned.yaml: valid",
        "  warned.yaml:4:17: warning: optimizer.lr: 1 is very high for adamw",
    ]
    assert main(["validate", "good.yaml", "warned.yaml"]) == 0


def test_show_prints_yaml_that_loads(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is shown is the whole config, with overrides applied."""
    assert main(["show", "good.yaml", "seed=3", "+model.heads=2"]) == 0
    shown = capsys.readouterr().out
    Path(project, "shown.yaml").write_text(shown, "utf-8")
    assert main(["show", "shown.yaml"]) == 0
    assert capsys.readouterr().out == shown
    assert "seed: 3\n" in shown
    assert "  heads: 2\n" in shown


@pytest.mark.parametrize(
    "arguments",
    [
        ["good.yaml", "seed=3", "+model.x={}", "--origins"],
        ["good.yaml", "--origins", "seed=3", "+model.x={}"],
        ["--origins", "good.yaml", "seed=3", "+model.x={}"],
        ["good.yaml", "seed=3", "--origins", "+model.x={}"],
    ],
)
def test_show_origins_in_any_order_of_arguments(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Every value stands beside its origin."""
    assert main(["show", *arguments]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [tuple(part.strip() for part in line.rsplit("  ", 1)) for line in lines]
    assert ('experiment_name = "a"', "good.yaml:1:18") in rows
    assert ("seed = 3", "override 'seed=3'") in rows
    assert ("model.x = {}", "override '+model.x={}'") in rows
    assert ("optimizer.betas = [0.9, 0.999]", "default") in rows
    assert ("scheduler = null", "default") in rows


def test_diff_prints_what_differs(capsys: pytest.CaptureFixture[str]) -> None:
    """One line a key, and nothing at all for equal configs."""
    assert main(["diff", "good.yaml", "warned.yaml"]) == 0
    assert capsys.readouterr().out == "optimizer.lr: 0.0001 -> 1.0\n"
    assert main(["diff", "good.yaml", "good.yaml"]) == 0
    assert capsys.readouterr().out == ""


def test_schema_prints_json(capsys: pytest.CaptureFixture[str]) -> None:
    """The schema can be redirected to a file."""
    assert main(["schema"]) == 0
    assert "optimizer" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "missing.yaml"], "missing.yaml: no such file"),
        (["show", "bad.yaml"], "did you mean seed?"),
        (["show", "good.yaml", "sede=1"], "did you mean seed?"),
        (["diff", "good.yaml", "bad.yaml"], "bad.yaml:4:1"),
    ],
)
def test_what_is_wrong_with_a_config_goes_to_stderr(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, the message for users, no output to mistake for a config."""
    assert main(arguments) == 1
    out, err = capsys.readouterr()
    assert message in err
    assert out == ""


@pytest.mark.parametrize(
    "arguments",
    [
        *([], ["frobnicate"], ["validate"], ["show"], ["diff", "good.yaml"]),
        *(["schema", "x"], ["show", "good.yaml", "--bad"], ["validate", "-x", "a"]),
    ],
)
def test_a_wrong_command_line_exits_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Usage goes to stderr."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m mtf_config" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    """`python -m mtf_config` is the same, with the exit code."""
    assert run("validate", "good.yaml").stdout == "good.yaml: valid\n"
    result = run("show", "bad.yaml")
    assert result.returncode == 1
    assert "Traceback" not in result.stderr


def test_a_reader_that_left_is_no_error() -> None:
    """`... schema | head` does not end in a traceback."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        result = run("schema", stdout=writer)
    finally:
        os.close(writer)
    assert result.stderr == ""


def test_names_that_are_no_text_can_be_reported() -> None:
    """A file name of arbitrary bytes, on a terminal that knows only ASCII."""
    name = os.fsdecode(b"\xff.yaml")
    Path(name).write_text(GOOD_FILE + "description: ä\n", "utf-8")
    environ = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = subprocess.run(
        [sys.executable, "-m", "mtf_config", "show", name, "--origins"],
        env=environ, capture_output=True, check=True,
    )  # fmt: skip
    assert b"\\udcff.yaml:4:14" in result.stdout
