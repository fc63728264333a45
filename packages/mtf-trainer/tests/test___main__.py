from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from mtf_trainer.__main__ import main
from mtf_trainer._saving.encryption import generate_key
from mtf_trainer._saving.saver import Saver
from mtf_trainer.config import CheckpointSettings


def save(run_dir: Path, *steps: int, **settings: Any) -> list[str]:
    """Write checkpoints with the real `Saver`; return their names."""
    saver = Saver(run_dir / "checkpoints", CheckpointSettings(**settings), parent=None)
    names = []
    for step in steps:
        resume = {"phase": "TRAIN_BATCH_END", "epoch": 0, "global_step": step}
        content = {"resume": resume, "model": {"w": torch.ones(step)}}
        saved = saver.save(content, epoch=0, global_step=step, metrics={})
        names.append(saved.path.name)
    return names


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Return a run with two checkpoints."""
    save(tmp_path / "run", 1, 2)
    return tmp_path / "run"


def test_whole_run_exits_with_0(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table and the verdict are printed, and the shell may go on."""
    assert main(["verify", str(run_dir)]) == 0

    out, err = capsys.readouterr()
    assert "WHOLE: 2 saves" in out
    assert not err


def test_run_that_is_not_whole_exits_with_1(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The problem is printed, in words and in JSON."""
    (run_dir / "checkpoints" / "epoch_000_step_000001.ckpt").write_bytes(b"x")

    assert main(["verify", str(run_dir)]) == 1
    assert "PROBLEM: epoch_000_step_000001.ckpt" in capsys.readouterr().out
    assert main(["verify", "--json", str(run_dir)]) == 1
    plain = json.loads(capsys.readouterr().out)
    assert plain["run_dir"] == str(run_dir)
    assert plain["problems"][0]["place"] == "epoch_000_step_000001.ckpt"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "COMMAND"),
        (["verify"], "RUN_DIR"),
        (["verify", "{run}", "--replay", "train.py"], "MODULE:FUNCTION, not 'train.py'"),
        (["verify", "{run}", "--from", "x"], "--from needs --replay"),
        (["verify", "{run}", "--replay-timeout", "0"], "number above 0"),
        (["verify", "{run}", "--key-env", ""], "--key-env needs a name"),
        (["verify", "{run}", "--key-env", "A", "--key-file", "b"], "not allowed with"),
        (["show", "{run}", "--key-env", ""], "--key-env needs a name"),
    ],
)
def test_mistake_in_the_command_exits_with_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], told: str
) -> None:
    """What is wrong is said on stderr, and nothing is done."""
    with pytest.raises(SystemExit) as ended:
        main([each.format(run=run_dir) for each in arguments])

    out, err = capsys.readouterr()
    assert ended.value.code == 2
    assert told in err
    assert not out


def test_folder_without_a_run_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A wrong folder is a mistake in the command, and not a run that is not whole."""
    assert main(["verify", str(tmp_path)]) == 2
    assert "is no folder of a run" in capsys.readouterr().err
    assert main(["verify", str(tmp_path), "--key-file", str(tmp_path / "no")]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_key_opens_an_encrypted_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file and a variable with the key do, for both commands; none does not."""
    keys = tmp_path / "keys"
    keys.write_text(generate_key() + "\n", "utf-8")
    keys.chmod(0o600)
    monkeypatch.setenv("KEYS", keys.read_text("utf-8"))
    save(tmp_path / "run", 1, encryption_key_file=keys)
    run = str(tmp_path / "run")

    for command in ("verify", "show"):
        assert main([command, run, "--key-file", str(keys)]) == 0
        assert main([command, run, "--key-env", "KEYS"]) == 0
        assert main([command, run]) == 1
    assert "key" in capsys.readouterr().err


def test_nothing_to_replay_is_a_problem(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who asks for a proof by replay, and gets none, is told so by the exit code."""
    (name,) = save(tmp_path / "run", 1)
    arguments = ["verify", str(tmp_path / "run"), "--replay", "train:main"]

    assert main(arguments) == 1
    assert "nothing to replay" in capsys.readouterr().out
    assert main([*arguments, "--from", name]) == 1
    assert f"was trained from {name}" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_replay_that_fails_exits_with_1(
    run_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the function prints goes to stderr; what came of it, into the report."""
    (tmp_path / "train.py").write_text("def main(run_dir): print('hello')", "utf-8")
    monkeypatch.chdir(tmp_path)

    assert main(["verify", str(run_dir), "--json", "--replay", "train:main"]) == 1

    out, err = capfd.readouterr()
    assert "wrote no checkpoint" in json.loads(out)["replays"][0]["problem"]
    assert "replaying epoch_000_step_000001.ckpt to epoch_000_step_000002.ckpt" in err
    assert "hello" in err


@pytest.mark.slow
@pytest.mark.parametrize("function", ["nosuch:main", "train:nosuch", "train:VALUE"])
def test_a_function_that_is_not_there_is_no_difference(
    run_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    function: str,
) -> None:
    """It is a mistake in the command, which ends at the first replay and says why."""
    (tmp_path / "train.py").write_text("VALUE = 1", "utf-8")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(SystemExit, match="2"):
        main(["verify", str(run_dir), "--replay", function])

    err = capfd.readouterr().err
    assert f"--replay {function}: not found" in err
    assert err.count("replaying") == 1


def test_show_tells_what_a_checkpoint_holds(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest of a run, or the one that is named; with its tensors when asked."""
    assert main(["show", str(run_dir)]) == 0
    assert "epoch_000_step_000002.ckpt" in capsys.readouterr().out
    path = run_dir / "checkpoints" / "epoch_000_step_000001.ckpt"
    assert main(["show", "--tensors", str(path)]) == 0
    assert "model.w  float32 [1]  4 B" in capsys.readouterr().out
    assert main(["show", str(run_dir / "nothing")]) == 1


def test_keygen_prints_a_key(capsys: pytest.CaptureFixture[str]) -> None:
    """It prints 32 random bytes in base64, others each time."""
    assert main(["keygen"]) == 0
    assert main(["keygen"]) == 0

    keys = capsys.readouterr().out.split()
    assert [len(base64.b64decode(key)) for key in keys] == [32, 32]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("command", ["verify", "show", "keygen"])
def test_help_teaches_in_80_columns(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Each command's help has an example that can be copied, and fits a terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])

    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert f"python -m mtf_trainer {command}" in out.partition("example")[2]
    assert max(map(len, out.splitlines())) <= 80


def test_module_runs_and_help_loads_no_torch(run_dir: Path) -> None:
    """``python -m mtf_trainer`` works where the output is ASCII alone, as in a log."""
    odd = run_dir.with_name("lauf-ä")
    run_dir.rename(odd)
    command = [sys.executable, "-m", "mtf_trainer"]
    code = (
        "import sys; from mtf_trainer.__main__ import main\n"
        "try: main(['--help'])\n"
        "finally: assert 'torch' not in sys.modules"
    )

    shown = subprocess.run(
        [*command, "verify", "--json", str(odd)],
        env={"PYTHONIOENCODING": "ascii", "PATH": ""},
        capture_output=True,
        timeout=120,
        check=True,
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

    assert json.loads(shown.stdout)["run_dir"] == str(odd)
