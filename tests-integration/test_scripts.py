import runpy
from pathlib import Path
from typing import Any

import pytest

PIN = "iniconfig==2.3.1 \\\n    --hash=sha256:b2 \\\n    --hash=sha256:a1\n"


@pytest.fixture
def export_lock(root: Path) -> dict[str, Any]:
    """Return the names of scripts/export_lock.py."""
    return runpy.run_path(str(root / "scripts" / "export_lock.py"))


@pytest.fixture
def check_changelogs(root: Path) -> dict[str, Any]:
    """Return the names of scripts/check_changelogs.py."""
    return runpy.run_path(str(root / "scripts" / "check_changelogs.py"))


def test_pins_keep_versions_markers_and_hashes(export_lock: dict[str, Any]) -> None:
    """A pin is written with its marker, and with its hashes in order."""
    exported = PIN.replace(" \\", " ; sys_platform == 'linux' \\", 1)
    (pin,) = export_lock["pins"](exported)
    assert pin == (
        "iniconfig==2.3.1 ; sys_platform == 'linux' \\\n"
        "    --hash=sha256:a1 \\\n    --hash=sha256:b2\n"
    )


@pytest.mark.parametrize(
    "name", ["torch", "triton", "nvidia-cudnn-cu13", "cuda-bindings"]
)
def test_pins_leave_out_what_a_site_chooses(
    export_lock: dict[str, Any], name: str
) -> None:
    """Torch and its CUDA parts are not pinned; a name that only begins like them is."""
    exported = PIN.replace("iniconfig", name) + PIN.replace("iniconfig", "torchmetrics")
    (pin,) = export_lock["pins"](exported)
    assert pin.startswith("torchmetrics==")


@pytest.mark.parametrize(
    "line",
    [
        "--index-url https://example.org/simple",
        "iniconfig @ https://example.org/iniconfig.whl --hash=sha256:a1",
        "iniconfig==2.3.1",
        "-e ./packages/mtf-config",
    ],
)
def test_pins_refuse_addresses_and_bare_pins(
    export_lock: dict[str, Any], line: str
) -> None:
    """A line that names a place, or that nothing verifies, stops the export."""
    with pytest.raises(ValueError, match="not a pin with hashes"):
        list(export_lock["pins"](PIN + line + "\n"))


@pytest.mark.parametrize(
    ("changelog", "problem"),
    [
        ("# Changelog\n", "has no entry"),
        ("## [Unreleased]\n", "has no entry"),
        ("## [0.1.0] - 2026-01-31\n", "its newest entry is 0.1.0"),
        ("## [0.2.0] - 2026-02-30\n", "no day"),
        (
            "## [0.2.0] - 2026-01-01\n## [0.1.0] - 2026-01-31\n",
            "dated before it",
        ),
        ("## [0.2.0] - 2026-01-31\n### News\n", "`### News` is none of"),
    ],
)
def test_changelog_problem_is_named(
    check_changelogs: dict[str, Any], changelog: str, problem: str
) -> None:
    """Each way a changelog can be wrong is one message that says which."""
    (found,) = check_changelogs["problems"](changelog, "0.2.0")
    assert problem in found


def test_good_changelog_has_no_problem(check_changelogs: dict[str, Any]) -> None:
    """Unreleased changes above the newest entry are no problem."""
    changelog = (
        "## [Unreleased]\n### Added\n## [0.2.0] - 2026-02-01\n## [0.1.0] - 2026-01-31\n"
    )
    assert not list(check_changelogs["problems"](changelog, "0.2.0"))
