"""A project whose experiments train with mtf-trainer, and what one of them ends with.

Training of a kind is the same, to the byte, wherever and however often it was interrupted:
`trained` is what is to be compared.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtf_slurm.launcher import SLURMLauncher

__all__ = ["TRIVIAL", "Plain", "Project", "trained"]

# One thread each: the tests' machine has two cores. Where `gate` is set, the first start waits
# in the middle of an epoch until it is told to stop, or killed.
TRAIN = '''
import os
import signal
import sys
import time
from pathlib import Path

import torch
import yaml
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

from mtf_trainer import CheckpointSettings, GenericTrainer, GenericTrainerConfig

asked = []
path = Path(sys.argv[1])
config = yaml.safe_load(path.read_text(encoding="utf-8"))
rank = int(os.environ.get("SLURM_PROCID", "0"))
starts = path.parent / f"starts.{rank}"
with starts.open("a", encoding="utf-8") as file:
    file.write(f"{os.uname().nodename}\\n")
is_first = starts.read_text(encoding="utf-8").count("\\n") == 1


class Gate:
    """Waits in the middle of an epoch, for what the trainer is told."""

    def on_fit_start(self, trainer):
        with (path.parent / f"begins.{rank}").open("a", encoding="utf-8") as file:
            file.write(f"{trainer.global_step}\\n")

    def on_train_batch_forward(self, trainer):
        if config.get("gate") and is_first and trainer.global_step == 7:
            for number in (signal.SIGTERM, signal.SIGUSR1):
                listen(number, signal.getsignal(number))
            (path.parent / f"waits.{rank}").touch()
            deadline = time.monotonic() + 300
            while not asked and time.monotonic() < deadline:
                time.sleep(0.01)


def listen(number, handler):
    """Note a signal besides what is done about it."""

    def note(number, frame):
        asked.append(number)
        if callable(handler):
            handler(number, frame)

    signal.signal(number, note)


def step(trainer, batch, _):
    x_BD, y_B = batch
    return torch.nn.functional.cross_entropy(trainer.model(x_BD), y_B)


num_nodes = int(os.environ.get("SLURM_NNODES", "1"))
strategy = "ddp" if num_nodes > 1 else "auto"
fabric = Fabric(accelerator="cpu", devices=1, num_nodes=num_nodes, strategy=strategy)
fabric.launch()
torch.manual_seed(0)
model = torch.nn.Sequential(
    torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 2)
)
data = TensorDataset(torch.randn(40, 4), torch.arange(40) % 2)
trainer = GenericTrainer(
    GenericTrainerConfig(
        run_dir=path.parent,
        show_progress=False,
        log_every_n_steps=2,
        checkpoint=CheckpointSettings(asynchronous=False, every_n_steps=3),
    ),
    fabric,
    model,
    torch.optim.AdamW(model.parameters(), lr=config.get("optimizer", {}).get("lr", 0.01)),
    training_step=step,
    callbacks=[Gate()],
)
loader = DataLoader(data, batch_size=4, shuffle=True)
result = trainer.fit(loader, loader, max_epochs=3)
if result.exit_code == 0:
    torch.save(model.state_dict(), path.parent / f"weights.{rank}.pt")
sys.exit(result.exit_code)
'''

# Does what its config says, without torch.
TRIVIAL = """
import json
import os
import signal
import sys
import time
from pathlib import Path

config = Path(sys.argv[1])
do = json.loads(config.read_text(encoding="utf-8")).get("do")
if is_deaf := do == "be deaf" and not Path("starts").exists():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
with open("starts", "a", encoding="utf-8") as file:
    file.write("as submitted\\n")
deadline = time.monotonic() + 300
while is_deaf or do == "wait" and not Path("go_on").exists():
    time.sleep(0.05)
    assert time.monotonic() < deadline
while do == "work" and time.process_time() < 2:
    pass
if do == "raise":
    raise ValueError("the rate is negative")
if do == "die":
    os.kill(os.getpid(), signal.SIGKILL)
num_starts = len(Path("starts").read_text(encoding="utf-8").splitlines())
sys.exit(3 if do == "fail" or do == "fail_once" and num_starts == 1 else 0)
"""


@dataclass(frozen=True)
class Plain:
    """An experiment of plain values."""

    experiment_name: str
    values: dict[str, Any] = field(default_factory=dict)

    def model_dump(self, *, mode: str) -> dict[str, Any]:
        """Return the values, which JSON has, too."""
        assert mode == "json"
        return dict(self.values)


class Project:
    """A repository of two scripts, and launchers of it.

    Attributes:
        root: Its folder.
        experiments: The folder of its experiments.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.experiments = root / "experiments"
        root.mkdir(parents=True)
        (root / "train.py").write_text(TRAIN, "utf-8")
        (root / "trivial.py").write_text(TRIVIAL, "utf-8")
        (root / ".gitignore").write_text("experiments\n", "utf-8")
        user = ("-c", "user.name=U", "-c", "user.email=u@example.org")
        for args in (("init", "-q"), ("add", "."), (*user, "commit", "-qm", "one")):
            subprocess.run(["git", *args], cwd=root, check=True, timeout=60)

    def launcher(self, entry_point: str = "train.py", **more: Any) -> SLURMLauncher:
        """Return a launcher of one of the scripts."""
        given: dict[str, Any] = {
            "project_root": self.root,
            "entry_point": entry_point,
            "poll_interval_s": 0.3,
            "setup": ("export OMP_NUM_THREADS=1",),
        }
        return SLURMLauncher(**{**given, **more})

    def starts(self, name: str, rank: int = 0) -> list[str]:
        """Return the nodes on which a training was started, in order."""
        path = self.experiments / name / f"starts.{rank}"
        return path.read_text("utf-8").split() if path.exists() else []

    def waits(self, name: str, rank: int = 0) -> Callable[[], bool]:
        """Return what tells whether a training has come to its gate."""
        return (self.experiments / name / f"waits.{rank}").exists

    def train_here(self, name: str, **values: Any) -> Path:
        """Train undisturbed, without Slurm; return the experiment's folder."""
        folder = self.experiments / name
        folder.mkdir(parents=True)
        config = folder / "config.yaml"
        config.write_text(json.dumps({"gate": False, **values}), "utf-8")
        kept = {k: v for k, v in os.environ.items() if not k.startswith("SLURM_")}
        done = subprocess.run(
            [sys.executable, self.root / "train.py", config],
            cwd=folder,
            env={**kept, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            check=False,
            encoding="utf-8",
            timeout=120,
        )
        assert done.returncode == 0, done.stderr
        return folder


def trained(folder: Path, rank: int = 0) -> tuple[bytes, bytes]:
    """Return what a finished training leaves: its weights and its metrics."""
    weights = (folder / f"weights.{rank}.pt").read_bytes()
    return weights, (folder / "metrics.jsonl").read_bytes()
