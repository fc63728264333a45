from __future__ import annotations

from typing import Any

import pytest

from mtf_slurm.errors import SubmissionError
from mtf_slurm.settings import SlurmSettings, memory_bytes, settings_of, time_s


def test_a_section_and_its_defaults() -> None:
    """A key that is null or missing is the launcher's; what is given is the section's."""
    settings = settings_of("e", {"partition": None, "nodes": 2}, {"partition": "p"})
    assert (settings.partition, settings.nodes) == ("p", 2)
    assert settings_of("e", None, {}) == SlurmSettings()
    assert settings_of("e", {"modules": ["a", "b"]}, {}).modules == ("a", "b")


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"partiton": "x"}, "slurm.partiton: there is no such key; there are account"),
        ({"partition": "a\n#SBATCH --uid=0"}, "control character"),
        ({"partition": "-x"}, "begins with a dash"),
        ({"partition": " x"}, "space"),
        ({"partition": ""}, "slurm.partition is ''"),
        ({"gpu_type": "a:b", "gpus_per_node": 1}, "one name"),
        ({"gpu_type": "a100"}, "gpus_per_node is 0"),
        ({"nodes": 0}, "slurm.nodes is 0"),
        ({"nodes": "2"}, "slurm.nodes is '2'"),
        ({"time": "tomorrow"}, "HH:MM:SS"),
        ({"time": "0"}, "end the job at once"),
        ({"mem": "lots"}, "32G"),
        ({"mem": "0"}, "32G"),
        ({"dependencies": ["afterok:x"]}, "afterok:123"),
        ({"launch": "none", "nodes": 2}, "starts one process"),
        ({"venv": "a", "conda": "b"}, "one of them"),
        ({"venv": "relative"}, "absolute path"),
        ("text", "a section of keys"),
    ],
)
def test_what_is_refused_is_named(section: Any, said: str) -> None:
    """Nothing hostile gets in, and the error names the key."""
    with pytest.raises(SubmissionError, match=f"e: .*{said}"):
        settings_of("e", section, {})


def test_quantities() -> None:
    """Times and sizes are read as Slurm reads them."""
    assert [time_s(t) for t in ("5", "5:30", "1:00:00", "1-0", "1-2:3:4")] == [
        300,
        330,
        3600,
        86400,
        93784,
    ]
    assert [memory_bytes(m) for m in ("1", "1K", "2T")] == [2**20, 2**10, 2**41]
    assert SlurmSettings(time="2:00").time_s == 120


def test_gpus_as_slurm_writes_them() -> None:
    """With a kind and without, or not at all."""
    assert SlurmSettings().gpus is None
    assert SlurmSettings(gpus_per_node=2).gpus == "2"
    assert SlurmSettings(gpus_per_node=2, gpu_type="a100").gpus == "a100:2"


def test_equal_settings_are_one_kind() -> None:
    """Arrays are made of these, so they are hashed."""
    assert len({SlurmSettings(nodes=2), SlurmSettings(nodes=2), SlurmSettings()}) == 2
