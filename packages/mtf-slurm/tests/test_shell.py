from __future__ import annotations

import os
import site
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm.arrays import Code, Planned, Work
from mtf_slurm.git import Snapshot
from mtf_slurm.settings import SlurmSettings
from mtf_slurm.shell import command_words, shell_settings

characters = st.characters(exclude_categories=["C", "Z"], include_characters=" ")
texts = st.text(characters, min_size=1, max_size=20)


def code(root: str = "/p", python: str | None = "python") -> Code:
    """Return code that is not frozen."""
    return Code(project_root=Path(root), snapshot=None, python=python, cleanup="always")


def lines_of(entry_point: str | None, **asked: Any) -> str:
    """Return what the shell of a job of one experiment reads."""
    work = Work(SlurmSettings(**asked), entry_point)
    return shell_settings(Path("/e'x"), Planned(work, (("a",),)), code("/p q"))


def read_by_bash(script: str) -> list[str]:
    """Return the words that a script of bash writes, each ended by a null byte."""
    done = subprocess.run(
        ["/bin/bash", "-uc", script],
        capture_output=True,
        check=True,
        encoding="utf-8",
        timeout=20,
        env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
    )
    assert done.stderr == ""
    return done.stdout.split("\0")[:-1]


SHOW = 'code="/co de"; set_command "C F"; printf "%s\\0" "${command[@]}"'


@pytest.mark.parametrize(
    ("entry_point", "asked", "expected"),
    [
        (None, {}, ["mtf", "run", "C F"]),
        ("a/b.py", {}, ["python", "/co de/a/b.py", "C F"]),
        ("/x y/b.py", {}, ["python", "/x y/b.py", "C F"]),
        ("/x/script", {}, ["python", "/x/script", "C F"]),
        (
            "a.py",
            {"container": "my image", "gpus_per_node": 1},
            [
                *("apptainer", "exec", "--nv", "--bind=/e'x", "--bind=/p q", "my image"),
                *("python", "/co de/a.py", "C F"),
            ],
        ),
    ],
)
def test_commands_as_bash_reads_them(
    entry_point: str | None, asked: dict[str, object], expected: list[str]
) -> None:
    """Whatever paths are, each is one word."""
    script = lines_of(entry_point, **asked) + SHOW
    script += ' "$experiments_folder" "$project_root"'
    assert read_by_bash(script) == [*expected, "/e'x", "/p q"]


@settings(max_examples=30, deadline=None)
@given(texts, texts, texts)
def test_hostile_texts_stay_words(root: str, image: str, script: str) -> None:
    """No folder, image, interpreter or script is read as anything but itself."""
    container = "/i" + image.strip()
    work = Work(SlurmSettings(container=container), f"/{script}.py")
    planned = Planned(work, (("a",),))
    text = shell_settings(Path("/e", root), planned, code(f"/r{root}", f"/p{image}"))
    more = ' "$experiments_folder" "$project_root"'
    *command, folder, project = read_by_bash(text + SHOW + more)
    assert command[-4:] == [container, f"/p{image}", f"/{script}.py", "C F"]
    assert (folder, project) == (str(Path("/e", root)), str(Path(f"/r{root}")))


def test_launch_words() -> None:
    """Tasks, nodes and CPUs are those that were asked for; torchrun is one task a node."""
    asked = {"nodes": 2, "ntasks_per_node": 4, "cpus_per_task": 3}

    def launch(kind: str) -> list[str]:
        script = lines_of(None, launch=kind, **asked)
        return read_by_bash(script + 'printf "%s\\0" "${launch[@]}"')

    assert launch("srun")[:5] == [
        *("srun", "--nodes=2", "--ntasks=8", "--ntasks-per-node=4", "--cpus-per-task=3")
    ]
    assert {"--ntasks=2", "--ntasks-per-node=1", "--cpus-per-task=12"} <= {
        *launch("torchrun")
    }
    script = lines_of(None, launch="torchrun", **asked) + SHOW
    words = read_by_bash(script)
    start = ["python", "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=4"]
    assert words[: len(start)] == start
    assert words[-3:] == ["mtf", "run", "C F"]


def test_processes_are_told_where_to_meet() -> None:
    """Each of several tasks gets its rank, and the address that Slurm tells it."""
    script = lines_of("/bin/true.py", nodes=1, ntasks_per_node=2)
    script += """
        export SLURM_LAUNCH_NODE_IPADDR=10.0.0.1 SLURM_PROCID=1 SLURM_LOCALID=1
        export SLURM_NTASKS=2
        step=("${launch[@]:7}")
        ask='printf "%s\\0" "$MASTER_ADDR" "$RANK" "$LOCAL_RANK" "$WORLD_SIZE"'
        "${step[@]}" /bin/bash -c "$ask"
        MTF_MASTER_ADDR=ib0 "${step[@]}" /bin/bash -c "$ask"
    """
    assert read_by_bash(script) == ["10.0.0.1", "1", "1", "2", "ib0", "1", "1", "2"]


@pytest.mark.parametrize(
    ("workers", "expected"),
    [("exit 75", "75"), ("exit 0", "0"), ("exit 3", "1"), ("kill -TERM $$", "0")],
)
def test_torchrun_and_its_workers(workers: str, expected: str, tmp_path: Path) -> None:
    """A worker that saved is told from one that failed; warnings leave the agent alone.

    The agent is one of shell that makes 1 of all statuses but 0, as torchrun does.
    """
    (tmp_path / "python").write_text(
        "#!/bin/bash\nkill -USR1 $$\nkill -TERM $$\nwhile [ $1 != --no-python ]; do shift; "
        'done\nshift\n"$@" || exit 1\n',
        encoding="utf-8",
    )
    (tmp_path / "python").chmod(0o700)
    (tmp_path / "w.py").touch()
    work = Work(SlurmSettings(launch="torchrun", ntasks_per_node=2), f"{tmp_path}/w.py")
    planned = Planned(work, (("a",),))
    script = shell_settings(Path("/e"), planned, code(python=str(tmp_path / "python")))
    script += f"""
        export MTF_EXPERIMENT_DIR={tmp_path} MTF_JOB_ID=7 MASTER_PORT=1
        export SLURM_LAUNCH_NODE_IPADDR=10.0.0.1
        code=/ ; set_command C
        command=("${{command[@]:0:${{#command[@]}}-3}}" /bin/bash -c '{workers}')
        step=("${{launch[@]:7}}")
        "${{step[@]}}" "${{command[@]}}"
        printf '%s\\0' $?
    """
    assert read_by_bash(script) == [expected]


def test_commands_for_people() -> None:
    """What is recorded says what ran, without what starts it."""
    config = Path("/e/a/config.yaml")

    def words(entry_point: str | None, **asked: Any) -> list[str]:
        work = Work(SlurmSettings(**asked), entry_point)
        return command_words(work, code(python=None), config)

    assert words(None) == ["mtf", "run", str(config)]
    assert words("t.py", venv="/v")[:2] == ["python", "$MTF_CODE_DIR/t.py"]
    assert words("/t.py", conda="c")[:2] == ["python", "/t.py"]
    assert words("a.b:c")[1:] == ["a.b:c", str(config)]


def test_what_a_job_is_told() -> None:
    """Numbers and choices are those of the settings; a container is not for the checkout."""
    text = lines_of(
        None, requeue=False, max_requeues=3, continue_on_timeout=True, time="8"
    )
    for line in (
        *("requeue=0", "max_requeues=3", "continue_on_timeout=1", "time_s=480"),
        *("signal_s=120", "redirect=0", "checkout=()", "checkout_python=python"),
    ):
        assert line in text.splitlines()
    assert "checkout_python=python\n" not in lines_of(None, container="i")
    planned = Planned(Work(SlurmSettings(), None), (("a",),))
    assert "redirect=1\n" in shell_settings(
        Path("/e"), planned, code(), is_redirected=True
    )


@pytest.fixture
def edited(tmp_path: Path) -> tuple[Code, Path]:
    """Frozen code, and an environment whose `.pth` files name folders."""
    for name in ("repo/a b/src", "repo/c", "env/bin", "elsewhere"):
        (tmp_path / name).mkdir(parents=True)
    packages = tmp_path / "env" / "lib" / "python3.11" / "site-packages"
    packages.mkdir(parents=True)
    (tmp_path / "link").symlink_to("repo")
    lines = [
        *("# a comment", "import os", "", f"{tmp_path}/repo/a b/src", "/none"),
        *("../../../../link/c", f"{tmp_path}/elsewhere", f"{tmp_path}/repo/missing"),
    ]
    (packages / "x.pth").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (packages / "y.pth").write_bytes(b"\xff\n")
    snapshot = Snapshot(
        repository=tmp_path / "repo" / ".git",
        top=tmp_path / "link",
        prefix="c",
        commit="0" * 40,
        tree="0" * 40,
        base=None,
        dirty=(),
        branches={},
    )
    root = tmp_path / "link" / "c"
    made = Code(project_root=root, snapshot=snapshot, python=None, cleanup="always")
    return made, packages


@pytest.mark.parametrize(
    ("asked", "python", "is_found"),
    [
        ({"venv": "{env}"}, None, True),
        ({}, "{env}/bin/python", True),
        ({}, None, True),
        ({}, "python3", True),
        ({"venv": "/none"}, None, False),
        ({}, "/usr/bin/none", False),
        ({"conda": "c"}, None, False),
        ({"container": "i"}, None, False),
    ],
)
def test_folders_that_are_installed_to_be_edited(
    asked: dict[str, Any],
    python: str | None,
    *,
    is_found: bool,
    edited: tuple[Code, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Those in the repository are found in the job's environment, and named from its top."""
    code, packages = edited
    env = tmp_path / "env"
    code = replace(code, python=python and python.format(env=env))
    settings = SlurmSettings(**{k: v.format(env=env) for k, v in asked.items()})
    monkeypatch.setattr(site, "getsitepackages", lambda: [str(packages)])
    planned = Planned(Work(settings, "t.py"), (("a",),))
    text = shell_settings(Path("/e"), planned, code)
    words = read_by_bash(text + 'printf "%s\\0" "$top" "${paths[@]}"')
    assert words == [str(tmp_path / "repo"), *(["a b/src", "c"] if is_found else [])]
    plain = shell_settings(Path("/e"), planned, replace(code, snapshot=None))
    assert "paths=()" in plain.splitlines()
