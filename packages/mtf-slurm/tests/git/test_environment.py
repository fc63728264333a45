from __future__ import annotations

import ast
import errno
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

import pytest

from mtf_slurm.git import checkout, environment

SCRIPTS = [Path(module.__file__ or "") for module in (environment, checkout)]
DEADLINE_S = 60


def read(path: Path) -> Any:
    """Return what a file of JSON says."""
    return json.loads(path.read_text(encoding="utf-8"))


def install(folder: Path, name: str, about: str, direct_url: str = "") -> None:
    """Install a package, of which there is nothing but what says so."""
    info = folder / f"{name}-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(about, encoding="utf-8")
    if direct_url:
        (info / "direct_url.json").write_text(direct_url, encoding="utf-8")


def files(folder: Path) -> list[str]:
    """Return the names in a folder."""
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """A job's folder, with copies of the scripts."""
    folder = tmp_path / "job"
    folder.mkdir()
    for script in SCRIPTS:
        shutil.copy(script, folder)
    return folder


@pytest.fixture
def records(tmp_path: Path) -> Path:
    """A folder for records, with nothing else in it."""
    folder = tmp_path / "records"
    folder.mkdir()
    return folder


def command(job: Path, *paths: Path, python: str | Path = sys.executable) -> list[str]:
    """Return the command line by which a job says what it runs on."""
    script = [str(python), "-E", "-B", str(job / "environment.py")]
    return [*script, "--into", str(job.parent / "kept"), *map(str, paths)]


def run(args: list[str], **environ: str) -> subprocess.CompletedProcess[str]:
    """Run a command line with next to nothing in its environment."""
    return subprocess.run(
        args,
        env={"PATH": os.environ["PATH"], **environ},
        capture_output=True,
        encoding="utf-8",
        check=False,
        timeout=DEADLINE_S,
    )


def test_packages_are_those_installed() -> None:
    """What is imported here is listed with its version, each once, in order."""
    found = environment.packages()
    assert f"pytest=={pytest.__version__}" in found
    assert found == sorted(set(found), key=str.lower)


def test_packages_from_elsewhere_say_where(tmp_path: Path) -> None:
    """Editable, repository and file installs name their source, without its password."""
    sources: dict[str, Any] = {
        "edit": {"url": "file:///src/edit", "dir_info": {"editable": True}},
        "vcs": {
            "url": "https://user:hunter2@example.org/vcs",
            "vcs_info": {"vcs": "git", "commit_id": "abc"},
        },
        "signed": {"url": "https://u:p/w@h/s.whl?token=hunter2#sha", "archive_info": {}},
        "wheel": {"url": "file:///w.whl", "archive_info": {}},
    }
    for name, direct in sources.items():
        install(tmp_path, name, f"Name: {name}\nVersion: 1.0\n", json.dumps(direct))
    assert environment.packages([str(tmp_path)]) == [
        "-e file:///src/edit  # edit==1.0",
        "signed @ https://***@h/s.whl?***",
        "vcs @ git+https://***@example.org/vcs@abc",
        "wheel @ file:///w.whl",
    ]


def test_what_is_damaged_hides_nothing_else(tmp_path: Path) -> None:
    """A package that cannot be read is passed over; one whose source cannot, is by version."""
    install(tmp_path, "torn", "")
    install(tmp_path, "nameless", "Version: 1\n")
    install(tmp_path, "bytes", "Name: bytes\nVersion: 1\n")
    (tmp_path / "bytes-1.dist-info/METADATA").write_bytes(b"Name: \xff\n")
    for name, direct in {
        "half": "{",
        "list": "[1]",
        "vcs": '{"url": "https://h", "vcs_info": {"vcs": "git"}}',
    }.items():
        install(tmp_path, name, f"Name: {name}\nVersion: 1\n", direct)
    assert environment.packages([str(tmp_path)]) == ["half==1", "list==1", "vcs==1"]


def test_of_two_versions_the_first_is_imported(tmp_path: Path) -> None:
    """A package that is in two folders is listed as it is in the first, however spelt."""
    install(tmp_path / "first", "my_pkg", "Name: My.Pkg\nVersion: 2\n")
    install(tmp_path / "second", "my_pkg", "Name: my-pkg\nVersion: 1\n")
    path = [str(tmp_path / "first"), str(tmp_path / "second")]
    assert environment.packages(path) == ["My.Pkg==2"]
    assert environment.packages(path[::-1]) == ["my-pkg==1"]


def test_environment_names_python_and_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python, system and what is known of CUDA, without loading anything."""
    monkeypatch.delenv("CUDA_PATH", raising=False)
    monkeypatch.delenv("CUDA_HOME", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = environment.environment()
    assert found["python"] == sys.version
    assert found["executable"] == sys.executable
    assert set(found["cuda"]) <= {"driver"}
    about = {"cuda": {"version": "12.8.1"}}
    (tmp_path / "version.json").write_text(json.dumps(about), encoding="utf-8")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    cuda = environment.environment()["cuda"]
    cuda.pop("driver", None)
    assert cuda == {
        "toolkit": str(tmp_path),
        "toolkit_version": "12.8.1",
        "visible_devices": "0,1",
    }
    (tmp_path / "version.json").write_text("[]", encoding="utf-8")
    assert "toolkit_version" not in environment.environment()["cuda"]


def test_the_driver_is_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's version is the first line of what the kernel says of it."""
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "NVRM 570.1\nGCC\n")
    assert environment._cuda()["driver"] == "NVRM 570.1"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_the_syntax_is_that_of_old_pythons(script: Path) -> None:
    """A job's Python 3.8 can read both files."""
    ast.parse(script.read_text(encoding="utf-8"), feature_version=(3, 8))


@pytest.mark.slow
def test_each_python_says_it_of_itself(job: Path, tmp_path: Path) -> None:
    """Whichever Pythons are here, old or new, the script runs by them, with nothing else."""
    names = ["python3", "/usr/bin/python3", *(f"python3.{n}" for n in range(8, 16))]
    ask = (
        "-I",
        "-c",
        "import sys; sys.version_info >= (3, 8) or 1 / 0; print(sys.version)",
    )
    found = [
        name for name in names if shutil.which(name) and not run([name, *ask]).returncode
    ]
    for name in (sys.executable, *found):
        path = tmp_path / "record"
        done = run(command(job, path, python=name))
        assert (done.returncode, done.stderr) == (0, "")
        assert read(path)["python"] + "\n" == run([name, *ask]).stdout
    assert files(job) == ["checkout.py", "environment.py"]


@pytest.mark.slow
def test_a_jobs_packages_are_not_the_submitters(job: Path, tmp_path: Path) -> None:
    """Those of the venv and of `PYTHONPATH`, first; no module there replaces Python's own."""
    venv = tmp_path / "venv"
    make = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(make, check=True, timeout=DEADLINE_S)
    python = venv / "bin" / "python"
    ask = [
        str(python),
        "-I",
        "-c",
        "import sysconfig; print(sysconfig.get_path('purelib'))",
    ]
    site = Path(run(ask).stdout.strip())
    install(site, "here", "Name: here\nVersion: 1\n")
    install(site, "both", "Name: both\nVersion: 1\n")
    extra = tmp_path / "extra"
    install(extra, "both", "Name: both\nVersion: 2\n")
    (extra / "json.py").write_text("raise SystemExit(9)\n", encoding="utf-8")
    path = tmp_path / "1.environment.json"
    done = run(command(job, path, python=python), PYTHONPATH=f":{extra}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert read(path)["executable"] == str(python)
    assert read(path)["packages"] == ["both==2", "here==1"]


def test_the_users_own_packages_are_there_unless_the_job_has_none(
    job: Path, tmp_path: Path
) -> None:
    """Those of `pip install --user` are listed, but not where `PYTHONNOUSERSITE` is set."""
    python = getattr(sys, "_base_executable", sys.executable)  # a venv has none
    user = tmp_path / "user"
    lib = Path("lib", f"python{sysconfig.get_python_version()}", "site-packages")
    install(user / lib, "mine", "Name: mine\nVersion: 1\n")
    path = tmp_path / "record"
    args = command(job, path, python=python)
    run(args, PYTHONUSERBASE=str(user))
    assert "mine==1" in read(path)["packages"]
    run(args, PYTHONUSERBASE=str(user), PYTHONNOUSERSITE="1")
    assert "mine==1" not in read(path)["packages"]


def test_jobs_share_one_file_for_each_environment(
    records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal ones are one file, whichever job writes it again; another is another."""
    kept = tmp_path / "deep" / "kept"
    paths = [records / f"{n}.environment.json" for n in range(3)]
    for _ in range(2):  # the second time each is that file already
        assert environment.main(["--into", str(kept), *map(str, paths)]) == 0
    assert len({path.stat().st_ino for path in paths}) == 1
    assert read(paths[0]) == environment.environment()
    assert paths[0].stat().st_mode & 0o222 == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "another")
    assert environment.main(["--into", str(kept), str(paths[0])]) == 0
    assert read(paths[0])["cuda"]["visible_devices"] == "another"
    assert "another" not in paths[1].read_text(encoding="utf-8")
    assert len(files(kept)) == 2
    assert files(records) == [path.name for path in paths]


@pytest.mark.slow
def test_jobs_that_begin_at_once(job: Path, records: Path, tmp_path: Path) -> None:
    """Each has its record, also two of one path; one file is kept and nothing else left."""
    paths = [records / f"{n % 7}.json" for n in range(8)]
    jobs = [
        subprocess.Popen(command(job, path), stderr=subprocess.PIPE) for path in paths
    ]
    said = [job.communicate(timeout=DEADLINE_S)[1] for job in jobs]
    assert [(job.returncode, err) for job, err in zip(jobs, said, strict=True)] == [
        (0, b"")
    ] * 8
    assert len({path.read_bytes() for path in paths}) == 1
    assert len(files(tmp_path / "kept")) == 1
    assert files(records) == [f"{n}.json" for n in range(7)]


def test_a_file_that_was_lost_is_made_anew(tmp_path: Path) -> None:
    """What a node that died left empty under a digest's name is given to no job."""
    path = tmp_path / "record"
    args = ["--into", str(tmp_path / "kept"), str(path)]
    assert environment.main(args) == 0
    [name] = files(tmp_path / "kept")
    (tmp_path / "kept" / name).unlink()
    (tmp_path / "kept" / name).touch()
    assert environment.main(args) == 0
    assert read(path) == read(tmp_path / "kept" / name) == environment.environment()


@pytest.mark.parametrize("is_kept", [True, False])
def test_copies_where_no_link_can_be_made(
    *, is_kept: bool, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Past the number of names, or where nothing can be kept, each job has its own file."""

    def refuse(*_: object) -> None:
        raise OSError(errno.EMLINK, os.strerror(errno.EMLINK))

    kept = tmp_path / "kept"
    if is_kept:
        monkeypatch.setattr(os, "link", refuse)
    else:
        kept.touch()
    paths = [records / "a", records / "b"]
    for _ in range(2):
        assert environment.main(["--into", str(kept), *map(str, paths)]) == 0
    assert read(paths[0]) == read(paths[1]) == environment.environment()
    assert not paths[0].samefile(paths[1])
    assert files(records) == ["a", "b"]


def test_an_unwritable_folder_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It names what could not be written, and the other records are written."""
    paths = [tmp_path / "missing" / "1.json", tmp_path / "2.json"]
    args = ["--into", str(tmp_path / "kept"), *map(str, paths)]
    assert environment.main(args) == 1
    said = capsys.readouterr().err
    assert said.startswith("environment.py: FileNotFoundError: ")
    assert f"{tmp_path}/missing/1.json" in said
    assert said.count("\n") == 1
    assert read(paths[1]) == environment.environment()


def test_a_disk_that_takes_nothing_is_one_line(job: Path, records: Path) -> None:
    """Where each write fails nothing half-written is left, and what was there stays."""
    path = records / "record"
    path.write_text("before", encoding="utf-8")
    shell = ["bash", "-c", 'ulimit -f 0; exec "$@"', "bash"]
    done = run([*shell, *command(job, path)])
    assert (done.returncode, done.stdout) == (1, "")
    assert "File too large" in done.stderr
    assert done.stderr.count("\n") == 1
    assert path.read_text(encoding="utf-8") == "before"
    assert files(records) == ["record"]
    assert files(job.parent / "kept") == []


@pytest.mark.parametrize("args", [[], ["--into", "a"], ["--to", "a", "b"]])
def test_how_it_is_called(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A command line that it does not have is one line that says which it has."""
    assert environment.main(args) == 1
    assert capsys.readouterr().err == (
        "environment.py: give it --into FOLDER PATH [PATH ...]\n"
    )
