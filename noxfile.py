"""Every check of this repository. `nox -l` lists them, `nox` runs all that CI runs.

They run in the order in which they stand here.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import nox

nox.needs_version = ">=2026.10"
nox.options.default_venv_backend = "uv"
nox.options.download_python = "never"
nox.options.reuse_venv = "yes"
# A missing interpreter is skipped with its reason, in CI too: the summary names it.
nox.options.error_on_missing_interpreters = False

LOCK = "requirements.lock"
PYTHONS = ["3.11", "3.12", "3.13"]
# A new folder under packages/ is tested without an edit here.
PROJECTS = {
    path.parent.name: nox.project.load_toml(path)["project"]
    for path in sorted(Path("packages").glob("*/pyproject.toml"))
}
NEEDS_TORCH = {p for p in PROJECTS if "torch" in str(PROJECTS[p]["dependencies"])}

# What a machine has: folders of wheels (in pip's words, then in uv's), interpreters.
os.environ.setdefault("UV_PYTHON_DOWNLOADS", "never")
# Without bytecode each process that a test starts would compile all of torch anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
if "PIP_FIND_LINKS" in os.environ:
    os.environ.setdefault("UV_FIND_LINKS", os.environ["PIP_FIND_LINKS"].replace(" ", ","))
if pyenv := shutil.which("pyenv"):
    # Its python3.x commands answer only for the versions that this variable names.
    listed = subprocess.check_output([pyenv, "versions", "--bare"], encoding="utf-8")
    versions = [v for v in listed.split() if v[:4] in PYTHONS]
    os.environ.setdefault("PYENV_VERSION", ":".join(versions))
# The build of torch that the folders of wheels hold, by Python: {"3.11": "2.13.0+cpu"}.
TORCH = {
    f"3.{wheel.name.split('-')[2].removeprefix('cp3')}": wheel.name.split("-")[1]
    for folder in os.environ.get("UV_FIND_LINKS", "").split(",")
    for wheel in sorted(Path(folder or os.devnull).glob("torch-*-cp3*.whl"))
}

# The oldest Python we claim that the machine has, and torch for it; else nox's own.
FITTING = (p for p in PYTHONS if shutil.which(f"python{p}") and p in (TORCH or PYTHONS))
MAIN = next(FITTING, f"{sys.version_info.major}.{sys.version_info.minor}")
PYTHONS = sorted({*PYTHONS, MAIN})  # a newer one alone is tested, rather than nothing

# Those with a test that kills, and those with a folder under benchmarks/.
CHAOTIC = [p for p in PROJECTS if Path("packages", p, "tests", "chaos.py").is_file()]
BENCHED = [p for p in PROJECTS if Path("benchmarks", p.removeprefix("mtf-")).is_dir()]

BUILD = ("uv", "build", "--quiet", "--clear", "--no-create-gitignore")
WHEELS: dict[str, Path] = {}

# A process of tests for each core; a worker with nothing left takes over from the others.
ON_ALL_CORES = ("--numprocesses=logical", "--maxprocesses=8", "--dist=worksteal")

per_package = nox.parametrize("package", [nox.param(p, id=p) for p in PROJECTS])


def require_torch(session: nox.Session, give_up: Callable[[str], NoReturn]) -> None:
    """Call *give_up* with the reason if the session's Python is to do without torch.

    On Linux the plain torch of an index is gigabytes of CUDA. Where the site names no
    other, the demo needs that one too, so only the main Python is tested with it.
    """
    python = str(session.python)
    plain_is_fine = sys.platform != "linux" or "UV_TORCH_BACKEND" in os.environ
    if not (python in TORCH if TORCH else plain_is_fine or python == MAIN):
        give_up(f"no torch without CUDA at hand for Python {python}")


def workers(folder: str) -> tuple[str, ...]:
    """Return pytest's options for the tests of *folder*, if they are made to run so."""
    group = nox.project.load_toml(f"{folder}/pyproject.toml")["dependency-groups"]["test"]
    return ON_ALL_CORES if "pytest-xdist" in str(group) else ()


def install(session: nox.Session, *args: str, locked: bool = True) -> None:
    """Make the session's environment exactly *args* and what they need.

    Third parties come at the versions and hashes of the lock, torch as this site's build.
    """
    constraints = ["-c", LOCK, "-b", LOCK] if locked else []
    if version := TORCH.get(str(session.python)):
        pin = Path(session.create_tmp()) / "torch.txt"
        pin.write_text(f"torch=={version}\n", "utf-8")
        constraints += ["-c", str(pin)]
    session.install("--exact", *constraints, *args)


def build_wheel(session: nox.Session, package: str) -> Path:
    """Build the sdist of *package* and, from it, the wheel; once for all sessions.

    An installer given the folder itself would look at nothing but the pyproject's date,
    and test an old build.
    """
    if package not in WHEELS:
        out = session.cache_dir / "dist" / package
        session.run(*BUILD, f"--out-dir={out}", f"packages/{package}")
        (WHEELS[package],) = out.glob("*.whl")
    return WHEELS[package]


def install_alone(
    session: nox.Session, package: str, *args: str, locked: bool = True
) -> str:
    """Install *package* as users get it, and return the name it is imported by."""
    if package in NEEDS_TORCH:
        require_torch(session, session.skip)
    wheel = build_wheel(session, package)
    group = f"--group=packages/{package}/pyproject.toml:test"
    install(session, str(wheel), group, *args, locked=locked)
    return package.replace("-", "_")


def install_together(session: nox.Session, *args: str) -> None:
    """Install every package with all its extras, editable."""
    require_torch(session, session.error)
    for package, project in PROJECTS.items():
        extras = ",".join(project.get("optional-dependencies", ()))
        args = (*args, f"--editable=./packages/{package}[{extras}]")
    install(session, *args)


@nox.session(python=MAIN)
def lint(session: nox.Session) -> None:
    """Format, style, spelling, and changelogs that match versions."""
    install(session, "--group=lint")
    session.run("ruff", "format", "--check", ".")
    session.run("ruff", "check", ".")
    session.run("codespell")
    session.run("python", "scripts/check_changelogs.py")


@nox.session(python=MAIN)
def boundaries(session: nox.Session) -> None:
    """Refuse imports between packages, and imports nobody declared."""
    install_together(session, "--group=boundaries")
    session.run("lint-imports", "--no-cache")
    for package in PROJECTS:
        config = f"packages/{package}/pyproject.toml"
        session.run("deptry", f"packages/{package}/src", f"--config={config}")


@nox.session(python=MAIN)
@per_package
def types(session: nox.Session, package: str) -> None:
    """Type-check one package against only what it declares."""
    install_alone(session, package, "--group=types")
    session.run("mypy", f"packages/{package}/src", f"packages/{package}/tests")


@nox.session(python=MAIN)
def types_together(session: nox.Session) -> None:
    """Type-check what uses several packages, and the tools."""
    install_together(session, "--group=dev")
    session.run("mypy")


@nox.session(python=MAIN)
def build(session: nox.Session) -> None:
    """Check what an index would show, and that each sdist holds all of its package."""
    install(session, "--group=build")
    for package in PROJECTS:
        wheel = build_wheel(session, package)
        direct = Path(session.create_tmp()) / package
        session.run(*BUILD, "--wheel", f"--out-dir={direct}", f"packages/{package}")
        if wheel.read_bytes() != (direct / wheel.name).read_bytes():
            session.error(f"{wheel.name} differs when built without the sdist")
        session.run("twine", "check", "--strict", *map(str, wheel.parent.iterdir()))


@nox.session(python=PYTHONS)
@per_package
def tests(session: nox.Session, package: str) -> None:
    """Test one package alone: its wheel, what it declares, nothing else.

    The slow tests run on the main Python alone, which is where coverage is demanded.
    """
    module = install_alone(session, package)
    data = Path(session.create_tmp()) / "coverage"
    env = {"COVERAGE_FILE": str(data), "PYTHONWARNDEFAULTENCODING": "1"}
    is_main = session.python == MAIN
    chosen = session.posargs or ([] if is_main else ["-m", "not slow"])
    # --pyargs and --doctest-modules run the examples in the installed docstrings too.
    options = workers(f"packages/{package}")
    pytest = ("-m", "pytest", "--pyargs", module, "--doctest-modules", *options)
    python = ("coverage", "run", f"--source={module}") if is_main else ("python",)
    session.run("coverage", "erase", env=env)
    session.run(*python, *pytest, f"packages/{package}/tests", *chosen, env=env)
    if is_main:
        session.run("coverage", "combine", "--quiet", env=env)
        session.run("coverage", "report", "--fail-under=95", env=env)


@nox.session(python=MAIN)
@per_package
def minimums(session: nox.Session, package: str) -> None:
    """Test one package with the oldest versions it says it accepts."""
    # Named once more by its pyproject, so that what it declares counts as direct.
    declared = ("--requirements", f"packages/{package}/pyproject.toml")
    oldest = ("--resolution=lowest-direct", "--upgrade", *declared)
    install_alone(session, package, *oldest, locked=False)
    session.run("uv", "pip", "list")
    # What the slow ones show does not depend on versions; the tests above run them.
    chosen = session.posargs or ["-m", "not slow"]
    folder = f"packages/{package}"
    session.run("pytest", *workers(folder), f"{folder}/tests", *chosen)


@nox.session(python=MAIN)
def docs(session: nox.Session) -> None:
    """Build the manual with every warning an error."""
    install_together(session, "--group=docs")
    session.run("python", "scripts/make_config_reference.py", "--check")
    out = session.cache_dir / "html"
    session.run("sphinx-build", "-nW", "--keep-going", "-b", "html", "docs", str(out))


@nox.session(python=MAIN)
def integration(session: nox.Session) -> None:
    """Test the packages together, the demos, and every example of the documents."""
    install_together(session, "--group=test", "--group=demo")
    chosen = session.posargs or ["tests-integration", "-m", "not slurm"]
    session.run("pytest", *workers("."), *chosen)


@nox.session(python=MAIN)
def slurm(session: nox.Session) -> None:
    """Test on a real Slurm cluster, which is started in containers and taken down.

    Skipped on a machine that has not what starts one, unless `MTF_SLURM_REQUIRED` is set.
    """
    engines = ("podman", "docker", "slurmctld")
    if "MTF_SLURM_REQUIRED" not in os.environ:
        if not shutil.which("sbatch"):
            session.skip("no commands of Slurm: install the package slurm-client")
        if not any(map(shutil.which, engines)):
            session.skip(f"nothing to run a cluster in: none of {', '.join(engines)}")
    install_together(session, "--group=test")
    session.run("pytest", *(session.posargs or ["tests-integration", "-m", "slurm"]))


@nox.session(python=MAIN, default=False)
def demo(session: nox.Session) -> None:
    """Train the first example on real data; `-- optimizer.lr=3e-4` overrides a key."""
    require_torch(session, session.error)
    editable = ("--editable=./packages/mtf-config", "--editable=./packages/mtf-trainer")
    install(session, *editable, "--group=demo")
    # Ctrl-C reaches the script as well, which saves and exits 75: wait for it to do so,
    # however often it is pressed.
    interrupts: list[int] = []
    signal.signal(signal.SIGINT, lambda number, _: interrupts.append(number))
    example = "demo/example1_beginner_local"
    session.run(
        *("python", f"{example}/basic_model_training.py"),
        *("--config", f"{example}/config_examples/simple_config.yaml"),
        *session.posargs,
        success_codes=[0, 75, 130],
    )
    if interrupts:
        raise KeyboardInterrupt


@nox.session(python=MAIN, default=False)
@nox.parametrize("package", [nox.param(p, id=p) for p in BENCHED])
def bench(session: nox.Session, package: str) -> None:
    """Measure a package against its peers and print the ratios."""
    if package in NEEDS_TORCH:
        require_torch(session, session.error)
    extras = ",".join(PROJECTS[package].get("optional-dependencies", ()))
    wheel = f"{package}[{extras}] @ {build_wheel(session, package).resolve().as_uri()}"
    install(session, wheel, "--group=bench")
    folder = Path("benchmarks", package.removeprefix("mtf-"))
    for script in sorted(folder.glob("bench_*.py")):
        session.run("python", str(script), *session.posargs)


@nox.session(python=MAIN, default=False)
@nox.parametrize("package", [nox.param(p, id=p) for p in CHAOTIC])
def chaos(session: nox.Session, package: str) -> None:
    """Kill a package's processes at random, again and again; `-- --kills 50` for less."""
    install_alone(session, package)
    folder = Path(session.create_tmp()) / "chaos"
    script = f"packages/{package}/tests/chaos.py"
    env = {"OMP_NUM_THREADS": "1"}
    session.run("python", script, str(folder), *session.posargs, env=env)


@nox.session(python=MAIN, default=False)
def lock(session: nox.Session) -> None:
    """Write requirements.lock anew: the newest versions, their hashes, no address."""
    # The lock is for every site, not for this one's wheels.
    session.run("uv", "lock", "--upgrade", env={"UV_FIND_LINKS": None})
    session.run("python", "scripts/export_lock.py", LOCK)
