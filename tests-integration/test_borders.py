"""Where packages meet: real classes on the protocols of others, under mypy and at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from mtf_config import ConfigurationManager, ExperimentConfig
from mtf_gridsearch import (
    ConfigSaver,
    Experiment,
    GridSearchExecutor,
    Launcher,
    LocalLauncher,
    NamingStrategy,
    ParameterGrid,
    ParameterGridSearch,
    SearchResults,
    Status,
)

BASE = {
    "experiment_name": "borders",
    "model": {"type": "mlp", "hidden_size": 8},
    "data": {"dataset_name": "random"},
    "training": {"max_epochs": 2, "batch_size": 4},
}

# Reads its config as users do, trains with mtf-trainer, and leaves what that leaves.
TRAIN = """
import sys
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch.utils.data import DataLoader, TensorDataset

from mtf_config import ConfigurationManager
from mtf_trainer import GenericTrainer, GenericTrainerConfig

path = Path(sys.argv[1]).absolute()
config = ConfigurationManager(path.parent).load(path)
torch.manual_seed(config.seed)
model = torch.nn.Sequential(
    torch.nn.Linear(4, config.model.hidden_size), torch.nn.Linear(config.model.hidden_size, 2)
)
data = TensorDataset(torch.randn(24, 4), torch.arange(24) % 2)


def step(trainer, batch, _):
    x_BD, y_B = batch
    return torch.nn.functional.cross_entropy(trainer.model(x_BD), y_B)


trainer = GenericTrainer(
    GenericTrainerConfig(run_dir=path.parent, show_progress=False),
    Fabric(accelerator="cpu", devices=1),
    model,
    torch.optim.SGD(model.parameters(), lr=config.optimizer.lr),
    training_step=step,
)
loader = DataLoader(data, batch_size=config.training.batch_size, shuffle=True)
result = trainer.fit(loader, loader, max_epochs=config.training.max_epochs)
sys.exit(result.exit_code)
"""


def test_classes_fit_the_protocols_of_others(tmp_path: Path) -> None:
    """A config is an experiment, its manager saves configs, the launcher launches."""
    script = tmp_path / "train.py"
    script.write_text("", "utf-8")
    manager: ConfigSaver = ConfigurationManager(tmp_path)
    config: Experiment = ConfigurationManager(tmp_path).create_config(BASE)
    launcher: Launcher = LocalLauncher(script)

    manager.save(config, tmp_path / "config.yaml")

    assert ConfigurationManager(tmp_path).load("config.yaml") == config
    assert list(launcher.submit([], folder=tmp_path)) == []


def test_a_search_over_typed_configs_trains_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A grid over an `ExperimentConfig`, each trained by mtf-trainer, gathered."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    script = tmp_path / "train.py"
    script.write_text(TRAIN, "utf-8")
    base = ConfigurationManager(tmp_path).create_config(BASE)
    search = ParameterGridSearch(base, naming=NamingStrategy.PARAMETER_BASED)
    grid = ParameterGrid("lr").add_parameter("optimizer.lr", [1e-1, 1e-3])
    executor = GridSearchExecutor(
        LocalLauncher(script, max_running=2),
        ConfigurationManager(tmp_path),
        experiments_dir=tmp_path / "experiments",
    )

    result = executor.execute_grid_search(search, grid)

    assert result.counts == {Status.SUCCEEDED: 2}
    results = SearchResults.read(result.folder)
    best = results.best("val/loss", "min")
    assert best.parameters["optimizer.lr"] in (1e-1, 1e-3)
    saved = result.folder / best.experiment_name / "config.yaml"
    config = ConfigurationManager(tmp_path).load(saved)
    assert isinstance(config, ExperimentConfig)
    assert config.experiment_name == best.experiment_name
    assert config.optimizer.lr == best.parameters["optimizer.lr"]


def test_a_key_that_the_schema_lacks_is_told(tmp_path: Path) -> None:
    """A grid's slip is answered with the schema's nearest key, before anything runs."""
    base = ConfigurationManager(tmp_path).create_config(BASE)
    search = ParameterGridSearch(base)
    search.add_grid(ParameterGrid("slip").add_parameter("optimizer.lrr", [1.0]))

    with pytest.raises(Exception, match=r"optimizer\.lrr.*optimizer\.lr"):
        search.plan()
