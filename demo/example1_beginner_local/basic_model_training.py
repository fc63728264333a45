"""Train a small network on handwritten digits, from a typed config.

Read it from top to bottom: what can be asked for, the config and what is checked of it,
the training, what is shown of it. How the config becomes a model and an optimizer is in
`components`, the pictures are in `plots`.

It does not know how a config is read, how a loop is stopped and continued, or what a
checkpoint holds: `mtf_config` and `mtf_trainer` do.
"""
# ruff: noqa: PLC0415 - torch takes seconds to load: only once config and data are good

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Collection, Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from data.sample_dataset import NUM_CLASSES, SPLITS, DatasetError, load_split
from mtf_config import (
    ConfigurationManager,
    ConfigValidationError,
    ConfigValidator,
    ExperimentConfig,
    MtfConfigError,
    OptimizerConfig,
    Problem,
)
from mtf_trainer import (
    CheckpointSettings,
    FitResult,
    GenericTrainerConfig,
    MtfTrainerError,
    read_metrics,
)

HERE = Path(__file__).parent
EXIT_INTERRUPTED = 130  # Ctrl-C twice, or before there was anything to save

EXAMPLES = """\
examples:
  {command}
      train, evaluate, and show what came out
  {command} model.hidden_size=32 optimizer.lr=1e-3
      change keys of the config: a new experiment in a folder of its own
  {command} optimizer.type=sgd optimizer.lr=0.1 scheduler=null
      another optimizer, and a constant learning rate

The same command again continues its experiment after Ctrl-C, and shows the result again
once it is complete. All that a run writes lies in OUTPUT/<experiment_name>-<hash of the
config>. The configs explain the keys they set; docs/reference/config.md lists all.
"""
NEXT = [
    "model.hidden_size=16",
    "optimizer.type=sgd optimizer.lr=0.1 optimizer.momentum=0.9",
    "seed=1 training.max_epochs=60",
]


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    simple = "config_examples/simple_config.yaml"
    parser = argparse.ArgumentParser(
        description="Train a small network on handwritten digits, from a typed config.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=EXAMPLES.format(command=command_line("--config", simple)),
    )
    add = parser.add_argument
    add("--config", type=Path, required=True, help="YAML file, here or by this script")
    add("--output", type=Path, default="experiments", help="folder (%(default)s)")
    add("overrides", nargs="*", metavar="KEY=VALUE", help="changes a key of the config")
    return parser.parse_intermixed_args()


def command_line(*arguments: str) -> str:
    """Return the command that runs this script with *arguments*, from this folder."""
    python = Path(sys.executable)
    if python.is_relative_to(Path.cwd()):
        python = python.relative_to(Path.cwd())
    return shlex.join([str(python), sys.argv[0], *arguments])


def load_config(path: Path, overrides: list[str]) -> ExperimentConfig:
    """Load *path* with *overrides*, check it, and name it after its content.

    Raises:
        MtfConfigError: If it is no valid config, or asks for what is not done here.
    """
    if not path.exists() and (HERE / path).exists():
        path = HERE / path
    manager = ConfigurationManager()
    config = manager.load(path, overrides)
    # Any changed key changes the hash: an experiment of its own, in a folder of its own.
    suffix = f"-{config.content_hash()[:8]}"
    name = config.experiment_name.removesuffix(suffix) + suffix
    config = manager.load(path, [*overrides, f"experiment_name={name}"])
    result = ConfigValidator().validate_config(config)
    if problems := [*find_unsupported(config)] or result.errors:
        raise ConfigValidationError(problems)
    for warning in result.warnings:
        print(warning, file=sys.stderr)
    return config


def find_unsupported(config: ExperimentConfig) -> Iterator[Problem]:
    """Find what the schema allows and this example does not do: nothing is ignored."""
    choices: dict[str, Collection[Any]] = {
        "entry_point": [None],
        "slurm": [None],
        "model.type": ["mlp"],
        "model.activation": ["relu", "gelu", "silu", "tanh"],
        "data.dataset_name": SPLITS,
        "optimizer.type": ["adamw", "adam", "sgd"],
        "logging.use_wandb": [False],
        "logging.wandb_project": [None],
        "logging.wandb_entity": [None],
        "logging.log_images_every_n_steps": [None],
        "logging.log_gradients": [False],
        "logging.log_model_parameters": [False],
    }
    if splits := SPLITS.get(config.data.dataset_name):
        choices |= {"data.train_split": splits, "data.val_split": splits}
    if config.data.dataset_name == "digits":
        choices["data.root"] = [None]
    if config.optimizer.type == "sgd":
        choices["optimizer.eps"] = [OptimizerConfig().eps]
    if config.scheduler is not None:
        choices["scheduler.type"] = ["constant", "cosine", "linear"]
        if config.scheduler.type == "constant":
            choices["scheduler.min_lr"] = [0.0]
    for key, known in choices.items():
        value = attrgetter(key)(config)
        choice = " or ".join(map(json.dumps, known))
        if value not in known:
            yield Problem(
                key=key,
                place=config.provenance(key),
                message="this example does not do that",
                found=json.dumps(value, default=lambda _: "..."),
                expected="leave it out" if known == [None] else f"choose {choice}",
            )
    for name in config.model.model_extra or {}:
        key = f"model.{name}"
        message = "the mlp of this example has no such setting"
        yield Problem(key=key, place=config.provenance(key), message=message)


def run(config: ExperimentConfig, run_dir: Path) -> FitResult:
    """Train, or go on training; show what came out unless it was stopped.

    Raises:
        DatasetError: If the data are missing or damaged.
        MtfTrainerError: If *run_dir* holds what cannot be continued.
        OSError: If *run_dir* cannot be written.
    """
    training, data = config.training, config.data
    root = None if data.root is None else Path(data.root)
    train_images = load_split(data.dataset_name, data.train_split, root)
    val_images = load_split(data.dataset_name, str(data.val_split), root)

    import torch
    from lightning.fabric import Fabric

    import components
    from mtf_trainer import GenericTrainer

    # More threads gain nothing with matrices this small, and lose much on busy cores.
    torch.set_num_threads(1)
    torch.manual_seed(config.seed)
    train_batches = components.build_loader(config, train_images, shuffle=True)
    val_batches = components.build_loader(config, val_images, shuffle=False)
    model = components.build_model(config.model, train_images.pixels.shape[1])
    optimizer = components.build_optimizer(config.optimizer, model)
    steps_per_epoch = -(-len(train_batches) // training.gradient_accumulation_steps)
    num_steps = training.max_epochs * steps_per_epoch
    scheduler = components.build_scheduler(config.scheduler, optimizer, num_steps)
    trainer = GenericTrainer(
        GenericTrainerConfig(
            run_dir=run_dir,
            seed=config.seed,
            gradient_accumulation_steps=training.gradient_accumulation_steps,
            max_grad_norm=training.max_grad_norm,
            log_every_n_steps=config.logging.log_scalars_every_n_steps,
            scheduler_interval="step",
            checkpoint=CheckpointSettings(
                every_n_epochs=config.checkpoint.save_every_n_epochs,
                keep_last_n=config.checkpoint.keep_last_n,
            ),
        ),
        Fabric(devices=1, precision="bf16-mixed" if training.use_amp else "32-true"),
        model,
        optimizer,
        scheduler,
        training_step=components.step,
    )
    ConfigurationManager().save(config, run_dir / "config.yaml")
    result = trainer.fit(train_batches, val_batches, training.max_epochs)
    if result.exit_code:
        print(f"\nStopped in epoch {result.epoch + 1} of {training.max_epochs}.")
        return result
    if result.checkpoint == result.resumed_from:
        print("Already trained; this is its result again.")
    show(*components.answer(trainer, val_batches), run_dir)
    return result


def show(shown: list[int], answered: list[int], run_dir: Path) -> None:
    """Print how good the answers to the digits shown were; write it beside the metrics.

    Raises:
        OSError: If *run_dir* cannot be written.
    """
    from sklearn.metrics import classification_report, confusion_matrix

    from plots import plot_confusion_matrix, plot_loss_curve

    given = {"y_true": shown, "y_pred": answered, "labels": range(NUM_CLASSES)}
    report = partial(classification_report, **given, zero_division=0.0)
    counts = confusion_matrix(**given)
    results = {**report(output_dict=True), "confusion_matrix": counts.tolist()}
    (run_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", "utf-8")
    metrics = read_metrics(run_dir / "metrics.jsonl")
    if any(row["split"] == "val" for row in metrics):
        plot_loss_curve(metrics, run_dir / "loss_curve.png")
    else:
        print("metrics.jsonl has lost its lines: no curve of the loss is drawn")
    plot_confusion_matrix(counts, run_dir / "confusion_matrix.png")
    print(f"\nOn the {len(shown):,} validation images:\n\n{report(digits=3)}")
    print(f"All of it lies in {run_dir}:")
    print(*sorted(f"  {path.name}" for path in run_dir.iterdir()), sep="\n")


def main() -> int:
    """Do what the command line says; return the exit code."""
    arguments = parse_arguments()
    again = command_line(*sys.argv[1:])
    try:
        config = load_config(arguments.config, arguments.overrides)
        print(f"{config.experiment_name}: {config.description}", flush=True)
        result = run(config, arguments.output / config.experiment_name)
    except (MtfConfigError, DatasetError, MtfTrainerError, OSError) as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        print(f"\nStopped at once. This command continues:\n  {again}")
        return EXIT_INTERRUPTED
    if result.exit_code:
        print(f"This command continues where it stopped:\n  {again}")
        return result.exit_code
    print("\nTry next, each an experiment of its own:")
    for overrides in NEXT:
        print(f"  {again} {overrides}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
