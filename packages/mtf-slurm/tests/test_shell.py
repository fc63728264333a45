from __future__ import annotations

import os
import site
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtf_slurm.arrays import Code, Planned, Work
from mtf_slurm.errors import SnapshotError
from mtf_slurm.git import GitManager, Snapshot
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
    [
        ("exit 75", "75"),
        ("exit 0", "0"),
        ("exit 3", "1"),
        ('trap "exit 75" USR1; kill -USR1 $$', "75"),
    ],
)
def test_torchrun_and_its_workers(workers: str, expected: str, tmp_path: Path) -> None:
    """A worker that saved is told from one that failed; warnings reach it, not the agent.

    The agent is one of shell that makes 1 of all statuses but 0, as torchrun does.
    """
    (tmp_path / "python").write_text(
        f'#!/bin/bash\n[ $1 = -I ] && exec {sys.executable} "$@"\n'
        "kill -USR1 $$\nkill -TERM $$\nwhile [ $1 != --no-python ]; do shift; "
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
        ({"venv": "{env}"}, "/usr/bin/none", True),
        ({"venv": "/none"}, "{env}/bin/python", True),
        ({"conda": "c"}, "{env}/bin/python", True),
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
    planned = Planned(Work(settings, "a:b"), (("a",),))
    text = shell_settings(Path("/e"), planned, code)
    words = read_by_bash(text + 'printf "%s\\0" "$top" "${paths[@]}"')
    assert words == [str(tmp_path / "repo"), *(["a b/src", "c"] if is_found else [])]
    plain = shell_settings(Path("/e"), planned, replace(code, snapshot=None))
    assert "paths=()" in plain.splitlines()


def edited_in(code: Code, **more: Any) -> list[str]:
    """Return the folders that are found to be installed to be edited."""
    planned = Planned(Work(SlurmSettings(**more), "a:b"), (("a",),))
    text = shell_settings(Path("/e"), planned, code)
    return read_by_bash(text + 'printf "%s\\0" "$top" "${paths[@]}"')[1:]


@pytest.mark.parametrize("is_enabled", [False, True])
def test_what_a_user_installed_to_be_edited(
    *,
    is_enabled: bool,
    edited: tuple[Code, Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where the interpreter looks into the user's own packages, so does a submission."""
    code, packages = edited
    monkeypatch.setattr(site, "getsitepackages", list)
    monkeypatch.setattr(site, "getusersitepackages", lambda: str(packages))
    monkeypatch.setattr(site, "ENABLE_USER_SITE", is_enabled)
    assert edited_in(code) == (["a b/src", "c"] if is_enabled else [])


def test_what_other_interpreters_see(
    edited: tuple[Code, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A venv sees its base's packages if it says so, and a base those of the user."""
    code, _ = edited
    venv = tmp_path / "venv"
    venv.mkdir()
    says = f"home = {tmp_path}/env/bin\ninclude-system-site-packages = "
    (venv / "pyvenv.cfg").write_text(f"{says}false\n", encoding="utf-8")
    assert edited_in(code, venv=str(venv)) == []
    (venv / "pyvenv.cfg").write_text(f"{says}true\n", encoding="utf-8")
    assert edited_in(code, venv=str(venv)) == ["a b/src", "c"]
    monkeypatch.setattr(site, "getuserbase", lambda: str(tmp_path / "env"))
    other = replace(code, python="/none/bin/python")
    assert edited_in(other) == ["a b/src", "c"]


@pytest.fixture
def frozen(repo: Any) -> Code:
    """Frozen code of the project `sub`, in a repository with more."""
    repo.write(".gitignore", "ignored.py\n")
    repo.write("sub/ignored.py")
    repo.write("sub/a b.py")
    (repo.path / "sub" / "lib").symlink_to("../pkg")
    (repo.path / "sub" / "out").symlink_to("/usr")
    (repo.path.parent / "link").symlink_to(repo.path)
    root = repo.path.parent / "link" / "sub"
    snapshot = GitManager(root).snapshot("a")
    return Code(project_root=root, snapshot=snapshot, python="python", cleanup="always")


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("{top}/sub/a b.py", "/co/a b.py"),
        ("{top}/../link/sub/a b.py", "/co/a b.py"),
        ("{top}/pkg/util.py", "/co/../pkg/util.py"),
        ("{top}/sub/lib/util.py", "/co/../pkg/util.py"),
        ("{top}/sub/ignored.py", "{top}/sub/ignored.py"),
        ("{top}/sub/missing.py", "{top}/sub/missing.py"),
        ("/usr/bin/tool", "/usr/bin/tool"),
    ],
)
def test_scripts_by_absolute_paths(script: str, expected: str, frozen: Code) -> None:
    """One that was frozen is the checkout's, however it is named; another is where it lies."""
    top = frozen.project_root.parent
    script, expected = script.format(top=top), expected.format(top=top)
    for code in (frozen, replace(frozen, snapshot=None)):
        work = Work(SlurmSettings(), script)
        text = shell_settings(Path("/e"), Planned(work, (("a",),)), code)
        show = 'code="/co"; set_command C; printf "%s\\0" "${command[@]}"'
        wanted = expected if code is frozen else script
        assert read_by_bash(text + show)[1] == wanted
        shown = wanted.replace("/co/", "$MTF_CODE_DIR/")
        assert command_words(work, code, Path("C"))[1] == shown


@pytest.mark.parametrize(
    ("script", "is_refused"),
    [
        *(("a b.py", False), ("lib/util.py", False), ("mod:run", False)),
        *(("ignored.py", True), ("missing.py", True), ("out/missing.py", True)),
    ],
)
def test_scripts_that_were_not_frozen(
    script: str, *, is_refused: bool, frozen: Code
) -> None:
    """A script that the job's checkout would not have is refused when it is submitted."""
    planned = Planned(Work(SlurmSettings(), script), (("a",),))
    if is_refused:
        with pytest.raises(SnapshotError, match=f"/sub/{script}: this script is not in"):
            shell_settings(Path("/e"), planned, frozen)
    else:
        assert shell_settings(Path("/e"), planned, frozen)
    assert shell_settings(Path("/e"), planned, replace(frozen, snapshot=None))


def test_a_folder_that_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits from a folder that was removed submits all the same."""
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    assert f"submitted_in={folder}" in lines_of("t.py").splitlines()
    folder.rmdir()
    assert "submitted_in=/" in lines_of("t.py").splitlines()
