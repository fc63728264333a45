"""The same folder gives the same experiment through Hydra's own API."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import hydra
import pytest
from omegaconf import DictConfig, OmegaConf

from mtf_config import (
    CompositionError,
    ConfigFileError,
    ConfigurationManager,
    ConfigValidationError,
)
from mtf_config.hydra import compose, from_hydra

FILES = {
    "config.yaml": """\
        defaults:
          - base
          - optimizer: adamw
          - scheduler: null
          - optional data: local
          - _self_
        experiment_name: both_ways
        description: on
        training:
          max_epochs: 7
        """,
    "plain.yaml": """\
        defaults: [base, optimizer/sgd, _self_]
        experiment_name: plain
        """,
    "base.yaml": """\
        seed: 3
        model: {type: mlp, heads: 4, schedule: [1e-4, 2], width: "${model.hidden_size}"}
        data: {dataset_name: digits, root: "${env:MTF_TEST_ROOT:-data/raw}"}
        training: {max_epochs: 100, batch_size: 16}
        slurm: {time: 12:00:00, mem: 8G}
        """,
    "optimizer/adamw.yaml": """\
        defaults:
          - common
        type: adamw
        lr: 3e-4
        """,
    "optimizer/sgd.yaml": """\
        defaults: [common, _self_]
        type: sgd
        momentum: 0.9
        weight_decay: 0.5
        """,
    "optimizer/common.yaml": "weight_decay: 0.1\n",
    "scheduler/cosine.yaml": "{type: cosine, warmup_steps: 5}\n",
}


@pytest.fixture
def configs(tmp_path: Path) -> Path:
    """Return a folder whose name needs quoting, with configs both ways can read."""
    folder = tmp_path / "it's a folder"
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip())
        path.write_text("\n".join(line[indent:] for line in lines), "utf-8")
    return folder


@pytest.mark.parametrize("name", ["config", "plain"])
@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["optimizer.weight_decay=0.3", "training.max_epochs=9"],
        ["+model.depth=2", "~slurm.mem", "++optimizer.eps=1e-6"],
        ["model.schedule=[3, 4.5]", "slurm.time=1-00:00:00"],
        ["training={batch_size: 2}"],
        ["++training={use_amp: false}"],
    ],
)
def test_same_experiment(configs: Path, name: str, overrides: list[str]) -> None:
    """Hydra and the manager compose equal configs with equal hashes."""
    theirs = compose(configs, name, overrides)
    ours = ConfigurationManager(configs).load(f"{name}.yaml", overrides)
    assert theirs == ours
    assert theirs.content_hash() == ours.content_hash()
    assert theirs.slurm is not None
    assert theirs.model.model_extra is not None
    assert theirs.model.model_extra["width"] == 512
    assert theirs.slurm.time in ("12:00:00", "1-00:00:00")


@pytest.mark.parametrize("choice", ["optimizer=sgd", "scheduler=cosine"])
def test_same_choice_of_group(configs: Path, choice: str) -> None:
    """``group=name`` chooses the same file in both."""
    theirs = compose(configs, "config", [choice])
    assert theirs == ConfigurationManager(configs).load("config.yaml", [choice])
    assert theirs != compose(configs, "config")


def test_provenance_names_hydra_s_file(configs: Path) -> None:
    """A value composed by Hydra is known to come from there, and from no one file."""
    origin = compose(configs, "config").provenance("optimizer.lr")
    assert origin.source == f"Hydra's composition of {configs / 'config.yaml'}"


def test_hydra_s_refusal_is_ours(configs: Path) -> None:
    """What Hydra refuses is a CompositionError that keeps Hydra's words."""
    with pytest.raises(CompositionError, match=r"Hydra: .*no_such"):
        compose(configs, "config", ["optimizer=no_such"])


def test_missing_folder_and_file(configs: Path) -> None:
    """A folder or a first file that is not there is a clear error."""
    with pytest.raises(CompositionError, match="no such folder"):
        compose(configs / "nowhere", "config")
    with pytest.raises(CompositionError, match="nothing"):
        compose(configs, "nothing")


def test_broken_yaml_keeps_its_place(configs: Path) -> None:
    """A fault in a file names the file, the line and the column, through Hydra too."""
    (configs / "base.yaml").write_text("a: 1\na: 2\n", "utf-8")
    with pytest.raises(
        ConfigFileError, match=r"base\.yaml:2:1: a: the key 'a' stands twice"
    ):
        compose(configs, "config")


@pytest.mark.parametrize("entry", ["../../outside", "link"])
def test_nothing_leads_out_of_the_folder(configs: Path, entry: str) -> None:
    """Neither a path nor a link in a list of defaults reads a file elsewhere."""
    outside = configs.parent / "outside.yaml"
    outside.write_text("lr: 0.5\n", "utf-8")
    (configs / "optimizer" / "link.yaml").symlink_to(outside)
    text = f"defaults: [base, {{optimizer: {entry}}}, _self_]\nexperiment_name: x\n"
    (configs / "main.yaml").write_text(text, "utf-8")
    with pytest.raises(CompositionError, match="leads out of the folder"):
        compose(configs, "main")


def test_circle_and_wrong_overrides_are_ours(configs: Path) -> None:
    """Where Hydra fails with errors of Python's own, the error is this package's."""
    (configs / "a.yaml").write_text("defaults: [b]\n", "utf-8")
    (configs / "b.yaml").write_text("defaults: [a]\n", "utf-8")
    with pytest.raises(CompositionError, match="circle"):
        compose(configs, "a")
    with pytest.raises(CompositionError, match="Hydra: "):
        compose(configs, "config", ["optimizer=null"])


def test_inside_an_application_of_hydra(configs: Path) -> None:
    """It composes where Hydra is already at work, and leaves that as it was."""
    with hydra.initialize_config_dir(str(configs), version_base="1.3"):
        ours = compose(configs, "plain")
        theirs = from_hydra(_quoted_time(hydra.compose("plain")))
    assert ours == theirs


def _quoted_time(composed: DictConfig) -> DictConfig:
    """Undo YAML 1.1: 12:00:00 is a number of seconds to Hydra's own reader."""
    composed.slurm.time = "12:00:00"
    return composed


def test_schema_is_enforced(configs: Path) -> None:
    """What Hydra composes is validated like everything else."""
    with pytest.raises(ConfigValidationError, match=r"optimizer\.lr.*write a number"):
        compose(configs, "config", ["optimizer.lr=fast"])


def test_section_under_two_names(configs: Path) -> None:
    """`trainer` beside `training` is refused rather than merged by luck."""
    (configs / "plain.yaml").write_text(
        "defaults: [base]\nexperiment_name: x\ntrainer: {max_epochs: 2}\n", "utf-8"
    )
    with pytest.raises(CompositionError, match="one section"):
        compose(configs, "plain")


def test_from_hydra(configs: Path) -> None:
    """A config composed with Hydra's compose, by its own reader, becomes an experiment."""
    base = configs / "base.yaml"
    base.write_text(base.read_text("utf-8").replace("12:00:00", '"12:00:00"'), "utf-8")
    with hydra.initialize_config_dir(str(configs), version_base="1.3"):
        composed = hydra.compose("plain")
    config = from_hydra(composed)
    assert config == ConfigurationManager(configs).load("plain.yaml")
    assert config.provenance("seed").source == "hydra"


def test_from_hydra_resolves_by_our_rules() -> None:
    """Placeholders in a DictConfig are resolved, defaults of the schema included."""
    composed = OmegaConf.create(
        {
            "experiment_name": "x",
            "model": {"type": "m", "peak": "${optimizer.lr}"},
            "data": {"dataset_name": "d"},
        }
    )
    assert from_hydra(composed).model.model_extra == {"peak": 1e-4}


def test_without_hydra_the_error_names_the_extra() -> None:
    """Importing the module where Hydra is missing says what to install."""
    program = (
        "import sys; sys.modules['hydra'] = None\n"
        "try:\n import mtf_config.hydra\n"
        "except ModuleNotFoundError as error:\n print(error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        encoding="utf-8",
        check=True,
        timeout=60,
    )
    assert "mtf-config[hydra]" in done.stdout
