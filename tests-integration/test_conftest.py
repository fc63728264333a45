import textwrap
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LEAKS = {
    "environment variables leaked: ['MTF_LEAK']": """
        import os

        def test_leak():
            os.environ["MTF_LEAK"] = "1"
        """,
    "threads leaked: ['left behind']": """
        import threading

        def test_leak():
            wait = threading.Event().wait
            threading.Thread(target=wait, name="left behind", daemon=True).start()
        """,
    "child processes leaked: [['sleep', '61']]": """
        import subprocess

        def test_leak(kept=[]):
            kept.append(subprocess.Popen(["sleep", "61"]))
        """,
}


@pytest.mark.parametrize(
    ("message", "code"), LEAKS.items(), ids=["env", "thread", "process"]
)
def test_leak_fails_its_test(
    pytester: pytest.Pytester, root: Path, message: str, code: str
) -> None:
    """A test that leaves something behind fails with a message that names it."""
    conftest = (root / "tests-integration" / "conftest.py").read_text("utf-8")
    pytester.makeconftest(conftest)
    pytester.makepyfile(textwrap.dedent(code))
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    result.assert_outcomes(passed=1, errors=1)
    assert message in result.stdout.str()
