import re
import tomllib
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Written as patterns that do not match themselves.
REGISTRIES = r"py[p]i\.org|python[h]osted\.org|deb\.[d]ebian\.org|registry\.[n]pmjs\.org"
FOLDERS = r"(?<![\w.])/(?:[w]ork|[f]arm|[r]oot|(?:[h]ome|[U]sers)/\w+)\b"
NEEDED = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
SITES_CHOICE = {"torch"}


def requirements(pyproject: Path) -> Iterator[Requirement]:
    """Yield what the project, its extras and its groups ask for by name."""
    data = tomllib.loads(pyproject.read_text("utf-8"))
    project = data["project"]
    extras = project.get("optional-dependencies", {}).values()
    groups = data.get("dependency-groups", {}).values()
    for text in chain(project.get("dependencies", ()), *extras, *groups):
        if isinstance(text, str):
            yield Requirement(text)


def test_no_file_names_a_registry_or_a_machine(root: Path, files: list[Path]) -> None:
    """No file of the repository names a registry's host or a path of one machine."""
    found = {
        str(file.relative_to(root)): hits
        for file in files
        if (
            hits := re.findall(
                f"{REGISTRIES}|{FOLDERS}", file.read_text("utf-8", "replace")
            )
        )
    }
    assert not found


def test_no_lock_with_addresses_is_committed(files: list[Path]) -> None:
    """uv.lock, which names an index in every entry, is not in the repository."""
    assert "uv.lock" not in {file.name for file in files}


def test_package_has_the_needed_files(package: Path) -> None:
    """A package brings its documents, its licence, its types marker and its tests."""
    module = package / "src" / package.name.replace("-", "_")
    missing = [name for name in NEEDED if not (package / name).is_file()]
    assert not missing
    assert (module / "__init__.py").is_file()
    assert (module / "py.typed").is_file()
    assert any((package / "tests").glob("test_*.py"))


def test_package_licence_is_that_of_the_repository(root: Path, package: Path) -> None:
    """Every package ships the same licence text as the root."""
    assert (package / "LICENSE").read_bytes() == (root / "LICENSE").read_bytes()


def test_module_has_a_test_file_of_its_name(package: Path) -> None:
    """`src/<package>/x.py` and `_x.py` have `tests/test_x.py`; `__init__.py` may."""
    modules = {path.stem.strip("_") for path in package.glob("src/**/*.py")}
    tests = package.glob("tests/**/test_*.py")
    tested = {path.stem.removeprefix("test_").strip("_") for path in tests}
    assert not modules - tested - {"init"}


def test_readme_says_what_is_not_built(root: Path, package: Path) -> None:
    """A package is called not built yet by its README and the root's, or by neither."""
    shell = "not built yet" in (package / "README.md").read_text("utf-8").lower()
    rows = (root / "README.md").read_text("utf-8").splitlines()
    (row,) = (row for row in rows if row.startswith(f"| [`{package.name}`]"))
    assert ("not built yet" in row) == shell


def test_lock_pins_every_declared_dependency(root: Path) -> None:
    """What a pyproject asks for is in the lock, at a version that fits; else: nox -s lock."""
    lock = (root / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    lines = [line.partition(" ")[0] for line in lock.splitlines() if "==" in line]
    pins: dict[str, list[str]] = {}
    for line in lines:
        name, _, version = line.partition("==")
        pins.setdefault(name, []).append(version)
    pyprojects = [root / "pyproject.toml", *root.glob("packages/*/pyproject.toml")]
    local = {path.parent.name for path in pyprojects}
    unpinned = [
        str(requirement)
        for requirement in chain(*map(requirements, pyprojects))
        if (name := canonicalize_name(requirement.name)) not in local | SITES_CHOICE
        and not any(map(requirement.specifier.contains, pins.get(name, ())))
    ]
    assert not unpinned


def test_lock_leaves_out_what_a_site_chooses(root: Path) -> None:
    """The lock pins with hashes, and pins neither torch nor any of its CUDA parts."""
    lock = (root / "requirements.lock").read_text("utf-8").replace("\\\n", " ")
    pins = [line for line in lock.splitlines() if not line.startswith("#")]
    assert all("==" in pin and " --hash=sha256:" in pin for pin in pins)
    assert not [
        pin for pin in pins if re.match(r"(torch|triton|nvidia-.*|cuda-.*)==", pin)
    ]
