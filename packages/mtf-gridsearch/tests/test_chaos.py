from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
def test_killed_at_random_each_experiment_succeeds_once(tmp_path: Path) -> None:
    """A dozen SIGKILLs of executor, runners, experiments: one success of each, none twice."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "12", "--seed", "1", str(tmp_path)],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr + done.stdout
    told = json.loads(done.stdout)
    assert told["kills"] == 12
    assert told["wrong"] == {}
    assert told["experiments"] >= 12
