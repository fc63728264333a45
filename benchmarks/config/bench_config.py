"""Configs a second, and import time: mtf-config beside its peers, in one run.

Every contender gets the same files: N experiments, each of which builds on a base file
and on two config groups, is merged in that order, and ends as a typed object. What each
does beyond that differs and is said in its row. Each round of each contender is a fresh
process on one core, which loads everything once to warm up and once more on the clock: the
CPU time of the process. Rounds alternate between contenders, so that a change of the
machine's speed meets all of them; the median round is shown.

    nox -s "bench(mtf-config)"
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from argparse import SUPPRESS
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import hydra
import pydantic
import yaml
from omegaconf import OmegaConf

import mtf_config
from mtf_config import ConfigurationManager, ExperimentConfig, _files

BASE = """\
description: An ordinary experiment
model:
  type: transformer
  hidden_size: 512
  num_layers: 6
  dropout: 0.1
  activation: gelu
  num_heads: 8
data:
  dataset_name: wikitext
  num_workers: 4
  pin_memory: true
training:
  max_epochs: 100
  batch_size: 32
  gradient_accumulation_steps: 2
  max_grad_norm: 1.0
  use_amp: true
logging:
  log_scalars_every_n_steps: 50
slurm:
  partition: gpu
  nodes: 2
  gpus_per_node: 8
  ntasks_per_node: 8
  cpus_per_task: 8
  mem: 64G
  time: "12:00:00"
"""
ADAMW = "type: adamw\nlr: 3.0e-4\nweight_decay: 0.1\nbetas: [0.9, 0.95]\n"
COSINE = "type: cosine\nwarmup_steps: 500\nmin_lr: 1.0e-5\n"
EXPERIMENT = """\
defaults:
  - base
  - optimizer: adamw
  - scheduler: cosine
  - _self_
experiment_name: experiment_{index:05d}
seed: {index}
training:
  batch_size: 64
"""
PARTS = ("base.yaml", "optimizer/adamw.yaml", "scheduler/cosine.yaml")


# OmegaConf's structured configs: the same keys as dataclasses.
@dataclasses.dataclass
class Data:
    """Section data."""

    dataset_name: str = "???"
    num_workers: int = 0
    pin_memory: bool = False


@dataclasses.dataclass
class Training:
    """Section training."""

    max_epochs: int = 100
    batch_size: int = 32
    gradient_accumulation_steps: int = 1
    max_grad_norm: float | None = 1.0
    use_amp: bool = True


@dataclasses.dataclass
class Optimizer:
    """Section optimizer."""

    type: str = "adamw"
    lr: float = 1e-4
    weight_decay: float = 0.01
    betas: list[float] = dataclasses.field(default_factory=lambda: [0.9, 0.999])


@dataclasses.dataclass
class Scheduler:
    """Section scheduler."""

    type: str = "cosine"
    warmup_steps: int = 0
    min_lr: float = 0.0


@dataclasses.dataclass
class Logging:
    """Section logging."""

    log_scalars_every_n_steps: int = 50


@dataclasses.dataclass
class Slurm:
    """Section slurm."""

    partition: str | None = None
    nodes: int = 1
    gpus_per_node: int = 0
    ntasks_per_node: int = 1
    cpus_per_task: int = 1
    mem: str | None = None
    time: str = "01:00:00"


@dataclasses.dataclass
class Experiment:
    """A whole config."""

    experiment_name: str = "???"
    description: str = ""
    seed: int = 0
    model: dict[str, Any] = dataclasses.field(default_factory=dict)
    data: Data = dataclasses.field(default_factory=Data)
    training: Training = dataclasses.field(default_factory=Training)
    optimizer: Optimizer = dataclasses.field(default_factory=Optimizer)
    scheduler: Scheduler = dataclasses.field(default_factory=Scheduler)
    logging: Logging = dataclasses.field(default_factory=Logging)
    slurm: Slurm = dataclasses.field(default_factory=Slurm)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every contender and print one table for speed and one for imports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--configs", type=int, default=300, help="experiments a round")
    parser.add_argument("--rounds", type=int, default=5, help="rounds of each contender")
    parser.add_argument("--time", nargs=2, metavar=("NAME", "FOLDER"), help=SUPPRESS)
    options = parser.parse_args(arguments)
    if options.time:
        print(time_one(options.time[0], Path(options.time[1]), options.configs))
        return
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    print(
        f"Python {platform.python_version()}, pydantic {pydantic.VERSION}, PyYAML "
        f"{yaml.__version__} ({'libyaml' if yaml.__with_libyaml__ else 'pure Python'}), "
        f"one core, {options.configs} configs, median of {options.rounds} rounds\n"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_configs(folder, options.configs)
        compare_speed(folder, options.configs, options.rounds)
    compare_imports(options.rounds)


class _Formatter(
    argparse.RawDescriptionHelpFormatter, argparse.ArgumentDefaultsHelpFormatter
):
    """Keep the text's lines, show the defaults."""


def write_configs(folder: Path, count: int) -> None:
    """Write the shared parts and *count* experiments that build on them."""
    for part, text in zip(PARTS, (BASE, ADAMW, COSINE), strict=True):
        (folder / part).parent.mkdir(exist_ok=True)
        (folder / part).write_text(text, "utf-8")
    for index in range(count):
        (folder / f"e{index}.yaml").write_text(EXPERIMENT.format(index=index), "utf-8")
    manager = ConfigurationManager(folder)
    for index in range(count):
        manager.save(manager.load(f"e{index}.yaml"), f"saved/e{index}.yaml")


class Contenders:
    """Every way to load the same experiments; each yields one object a config."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.count = count
        self.manager = ConfigurationManager(folder)

    def ours(self) -> Iterable[Any]:
        """Load as a user does."""
        return (self.manager.load(f"e{i}.yaml") for i in range(self.count))

    def ours_uncached(self) -> Iterable[Any]:
        """Load with nothing remembered of the shared files."""
        for i in range(self.count):
            _files._parse_cached.cache_clear()  # noqa: SLF001 - what is measured
            yield self.manager.load(f"e{i}.yaml")

    def ours_saved(self) -> Iterable[Any]:
        """Load the composed configs from one file each."""
        return (self.manager.load(f"saved/e{i}.yaml") for i in range(self.count))

    def plain_c(self) -> Iterable[Any]:
        """PyYAML's libyaml reader, merged by hand, the same pydantic models."""
        return map(self._plain(yaml.CSafeLoader), range(self.count))

    def plain_python(self) -> Iterable[Any]:
        """The same with PyYAML's own reader."""
        return map(self._plain(yaml.SafeLoader), range(self.count))

    def _plain(self, loader: Any) -> Callable[[int], ExperimentConfig]:
        def load(index: int) -> ExperimentConfig:
            base, optimizer, scheduler, own = (
                yaml.load((self.folder / part).read_bytes(), loader)  # noqa: S506 - safe
                for part in (*PARTS, f"e{index}.yaml")
            )
            del own["defaults"]
            values = base | {"optimizer": optimizer, "scheduler": scheduler} | own
            values["training"] = base["training"] | own["training"]
            return ExperimentConfig.model_validate(values)

        return load

    def with_omegaconf(self) -> Iterable[Any]:
        """OmegaConf's structured merge, the files named by hand."""
        schema = OmegaConf.structured(Experiment)
        for i in range(self.count):
            base, optimizer, scheduler = (OmegaConf.load(self.folder / p) for p in PARTS)
            own: Any = OmegaConf.load(self.folder / f"e{i}.yaml")
            del own["defaults"]
            groups = {"optimizer": optimizer, "scheduler": scheduler}
            yield OmegaConf.merge(schema, base, groups, own)

    def with_hydra(self) -> Iterable[Any]:
        """Hydra's compose of the defaults list, without a schema."""
        with hydra.initialize_config_dir(str(self.folder), version_base="1.3"):
            for i in range(self.count):
                yield hydra.compose(f"e{i}")


CONTENDERS: dict[str, tuple[str, Callable[[Contenders], Iterable[Any]]]] = {
    "ours": ("mtf-config", Contenders.ours),
    "uncached": ("mtf-config, nothing cached", Contenders.ours_uncached),
    "saved": ("mtf-config, one saved file", Contenders.ours_saved),
    "plain_c": ("PyYAML (libyaml) + pydantic, by hand", Contenders.plain_c),
    "plain_python": ("PyYAML (pure) + pydantic, by hand", Contenders.plain_python),
    "omegaconf": ("OmegaConf structured merge", Contenders.with_omegaconf),
    "hydra": ("Hydra compose, no schema", Contenders.with_hydra),
}
SLOW = {"omegaconf", "hydra"}  # given a tenth of the configs


def time_one(name: str, folder: Path, count: int) -> float:
    """Return the CPU seconds that the contender *name* takes for one config."""
    each = Contenders(folder, count // 10 if name in SLOW else count)
    _, load = CONTENDERS[name]
    for _ in load(each):  # warms up
        pass
    _files._parse_cached.cache_clear()  # noqa: SLF001 - only what is shared is cached
    start = time.process_time()
    loaded = sum(1 for _ in load(each))
    return (time.process_time() - start) / loaded


def compare_speed(folder: Path, count: int, rounds: int) -> None:
    """Time the contenders in turn; print configs a second and the ratio to ours."""
    seconds: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(rounds):
        for name, measured in seconds.items():
            options = ["--time", name, str(folder), "--configs", str(count)]
            done = subprocess.run(
                [sys.executable, __file__, *options],
                check=True,
                stdout=subprocess.PIPE,
                encoding="utf-8",
            )
            measured.append(float(done.stdout))
    ours = seconds["ours"]
    print(f"{'':38}{'configs/s':>10}{'time / ours':>13}")
    for name, measured in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(measured, ours, strict=True))
        speed = 1 / statistics.median(measured)
        print(f"{CONTENDERS[name][0]:38}{speed:10.0f}{ratio:13.2f}")


def compare_imports(rounds: int) -> None:
    """Time each import in a fresh process, less the bare interpreter's start."""
    modules = ("", "mtf_config", "pydantic", "omegaconf", "hydra")
    seconds: dict[str, list[float]] = {name: [] for name in modules}
    for _ in range(rounds):
        for name in modules:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-c", f"import {name}" if name else ""], check=True
            )
            seconds[name].append(time.perf_counter() - start)
    bare = statistics.median(seconds.pop(""))
    median = {name: statistics.median(times) - bare for name, times in seconds.items()}
    print(f"\n{'':38}{'import, ms':>10}{'time / ours':>13}")
    for name, import_s in median.items():
        print(f"{name:38}{import_s * 1e3:10.0f}{import_s / median['mtf_config']:13.2f}")
    program = (
        "import mtf_config, sys; print({'torch', 'numpy'} & set(sys.modules) or 'no')"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], check=True, capture_output=True, text=True
    )
    print(
        f"\nmtf_config {mtf_config.__version__} loads {loaded.stdout.strip()} torch or numpy"
    )


if __name__ == "__main__":
    main()
