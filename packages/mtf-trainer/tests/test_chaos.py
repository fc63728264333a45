from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("chaos.py")


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tmp_path: Path) -> None:
    """A dozen SIGKILLs in steps and saves: the bytes are those of runs never killed."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--kills", "12", "--seed", "1", str(tmp_path)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kills"] == 12
    assert told["wrong"] == []
    assert told["runs"] >= 1
