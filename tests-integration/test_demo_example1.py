"""Example 1 of the demo: the real script in a process of its own, and its data."""

import gzip
import importlib
import json
import os
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[1] / "demo" / "example1_beginner_local"
SCRIPT = EXAMPLE / "basic_model_training.py"
SIMPLE = ("--config", "config_examples/simple_config.yaml")
MNIST = ("--config", "config_examples/mnist_config.yaml")
DEADLINE_S = 300


def run(argv: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run *argv* in *folder* to its end."""
    return subprocess.run(
        argv, cwd=folder, check=False, capture_output=True, text=True, timeout=DEADLINE_S
    )


def example(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the script with *arguments* in *folder*."""
    return run([sys.executable, str(SCRIPT), *arguments], folder)


def experiment(folder: Path) -> Path:
    """Return the folder of the one experiment below *folder*."""
    (path,) = (folder / "experiments").iterdir()
    return path


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Return the whole lines of the experiment's metrics so far."""
    path = run_dir / "metrics.jsonl"
    lines = path.read_text("utf-8").split("\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def assert_is_png(path: Path, least_px: int = 400) -> None:
    """Check that *path* begins as a PNG of at least *least_px* in each direction."""
    head = path.read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(struct.unpack(">2I", head[16:24])) >= least_px


@pytest.fixture(scope="module")
def trained(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Return a folder in which the simple config was trained, and what that printed."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, example(folder, *SIMPLE)


def test_it_learns_and_leaves_all_it_promises(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """The simple config reaches 96 % on real digits and writes every artefact."""
    folder, done = trained
    assert done.returncode == 0, done.stderr
    run_dir = experiment(folder)
    assert re.fullmatch(r"digits-[0-9a-f]{8}", run_dir.name)
    results = json.loads((run_dir / "results.json").read_text("utf-8"))
    assert results["accuracy"] >= 0.96
    counts = np.array(results["confusion_matrix"])
    assert counts.shape == (10, 10)
    assert counts.trace() / counts.sum() == pytest.approx(results["accuracy"])
    assert_is_png(run_dir / "confusion_matrix.png")
    assert_is_png(run_dir / "loss_curve.png")
    assert f"experiment_name: {run_dir.name}" in (run_dir / "config.yaml").read_text()
    assert (run_dir / "checkpoints" / "latest.ckpt").resolve(strict=True).is_file()
    assert f"{results['accuracy']:.3f}" in done.stdout
    assert str(run_dir.relative_to(folder)) in done.stdout


def test_a_complete_run_is_shown_again(
    trained: tuple[Path, subprocess.CompletedProcess[str]],
) -> None:
    """The same command trains nothing more; nor does the config that was saved."""
    folder, first = trained
    run_dir = experiment(folder)
    before = (run_dir / "metrics.jsonl").read_bytes()
    again = example(folder, "--config", str(run_dir.relative_to(folder) / "config.yaml"))
    assert again.returncode == 0, again.stderr
    assert "Already trained" in again.stdout
    assert experiment(folder) == run_dir
    assert (run_dir / "metrics.jsonl").read_bytes() == before
    (table,) = re.findall(r"precision.*weighted avg[^\n]*", first.stdout, re.DOTALL)
    assert table in again.stdout


@pytest.fixture
def _heeded_interrupts() -> Iterator[None]:
    """Let children heed SIGINT, even where this process was started to ignore it."""
    previous = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, previous)


@pytest.mark.usefixtures("_heeded_interrupts")
def test_it_continues_after_ctrl_c(tmp_path: Path) -> None:
    """Ctrl-C exits 75; the command it prints goes on, and no epoch is done twice."""
    max_epochs = 150
    argv = [sys.executable, str(SCRIPT), *SIMPLE, "model.num_layers=1"]
    argv += ["model.hidden_size=16", f"training.max_epochs={max_epochs}"]
    deadline = time.monotonic() + DEADLINE_S
    with subprocess.Popen(
        argv, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        while not any(
            row["epoch"] > 2
            for path in tmp_path.glob("experiments/*")
            for row in metrics(path)
        ):
            assert time.monotonic() < deadline
            try:
                code = process.wait(timeout=0.02)
            except subprocess.TimeoutExpired:
                continue
            pytest.fail(f"it ended with {code} before its third epoch")
        process.send_signal(signal.SIGINT)
        stdout, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 75
    stopped = re.search(rf"Stopped in epoch (\d+) of {max_epochs}", stdout)
    assert stopped is not None
    assert 3 <= int(stopped[1]) <= max_epochs
    command = stdout.splitlines()[-1].strip()

    done = run(shlex.split(command), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"going on from epoch_{int(stopped[1]) - 1:03d}_step_" in done.stderr
    rows = metrics(experiment(tmp_path))
    epochs = list(range(1, max_epochs + 1))
    assert [row["epoch"] for row in rows if row["split"] == "val"] == epochs
    samples = dict.fromkeys(epochs, 0)
    for row in rows:
        if row["split"] == "train":
            samples[row["epoch"]] += row["samples"]
    assert set(samples.values()) == {1437}


def test_lost_metrics_are_no_traceback(
    trained: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """A finished experiment without its metrics shows its result, and says what lacks."""
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True, symlinks=True)
    (experiment(tmp_path) / "metrics.jsonl").unlink()
    done = example(tmp_path, *SIMPLE)
    assert done.returncode == 0, done.stderr
    assert "no curve of the loss is drawn" in done.stdout


@pytest.fixture(scope="module")
def script() -> Iterator[ModuleType]:
    """Return the script as a module; what it imports from its folder goes with it."""
    before, environment = set(sys.modules), dict(os.environ)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLE)
        # torch and scikit-learn set environment variables when they are loaded.
        for name in ("components", "sklearn.datasets", "sklearn.model_selection"):
            importlib.import_module(name)
        yield importlib.import_module(SCRIPT.stem)
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(EXAMPLE)):
            del sys.modules[name]
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]


@pytest.fixture(scope="module")
def components(script: ModuleType) -> ModuleType:
    """Return the example's module of models, optimizers and schedules."""
    return importlib.import_module("components", script.__package__)


@pytest.fixture(scope="module")
def dataset(script: ModuleType) -> ModuleType:
    """Return the example's module of data."""
    return importlib.import_module("data.sample_dataset", script.__package__)


def test_what_it_does_not_do_is_refused(tmp_path: Path) -> None:
    """Every key that would have no effect is refused by name, all at once, untrained."""
    overrides = [
        *("entry_point=train.py", "slurm.nodes=1"),
        *("model.type=resnet", "model.activation=step", "+model.num_heads=4"),
        *("data.root=here", "data.train_split=half", "data.val_split=null"),
        *("optimizer.type=lion", "scheduler.type=cyclic"),
        *("logging.use_wandb=true", "logging.wandb_project=digits"),
        *("logging.wandb_entity=me", "logging.log_images_every_n_steps=5"),
        *("logging.log_gradients=true", "logging.log_model_parameters=true"),
    ]
    done = example(tmp_path, *SIMPLE, *overrides)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    refused = {line.partition("': ")[2] for line in done.stderr.splitlines()}
    keys = [text.partition("=")[0].removeprefix("+") for text in overrides]
    keys[keys.index("slurm.nodes")] = "slurm"
    assert not [k for k in keys if not any(text.startswith(k + ":") for text in refused)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (["optimizer.type=sgd", "optimizer.eps=1e-6"], "optimizer.eps"),
        (["optimizer.type=sgd", "optimizer.betas=[0.8, 0.9]"], "optimizer.betas"),
        (["optimizer.momentum=0.9"], "optimizer.momentum"),
        (["scheduler.type=constant", "scheduler.min_lr=1e-5"], "scheduler.min_lr"),
        (["data.dataset_name=cifar10"], "data.dataset_name"),
        (["training.max_epoch=3"], "training.max_epoch"),
    ],
)
def test_keys_without_effect_are_refused(
    script: ModuleType, overrides: list[str], key: str
) -> None:
    """A key that the chosen optimizer, schedule or schema has no use for is refused."""
    with pytest.raises(script.MtfConfigError) as caught:
        script.load_config(EXAMPLE / SIMPLE[1], overrides)
    assert key in str(caught.value)


@pytest.mark.parametrize("key", ["model.activation", "optimizer.type", "scheduler.type"])
def test_every_choice_it_offers_can_be_built(
    script: ModuleType, components: ModuleType, key: str
) -> None:
    """What the refusal of an unknown name proposes, the example has."""
    path = EXAMPLE / SIMPLE[1]
    with pytest.raises(script.ConfigValidationError) as caught:
        script.load_config(path, [f"{key}=unknown"])
    (problem,) = caught.value.problems
    choices = re.findall(r'"(\w+)"', problem.expected)
    assert len(choices) >= 3
    for choice in choices:
        config = script.load_config(path, [f"{key}={choice}"])
        model = components.build_model(config.model, 64)
        optimizer = components.build_optimizer(config.optimizer, model)
        scheduler = components.build_scheduler(config.scheduler, optimizer, 100)
        assert type(optimizer).__name__.lower() == config.optimizer.type
        assert scheduler is not None


@pytest.mark.parametrize(
    ("kind", "halfway", "end"),
    [("constant", 1.0, 1.0), ("linear", 0.55, 0.1), ("cosine", 0.55, 0.1)],
)
def test_schedules_warm_up_and_end_where_they_should(
    script: ModuleType, components: ModuleType, kind: str, halfway: float, end: float
) -> None:
    """The rate grows to its peak, then goes down to the lowest in the steps that are left."""
    settings = [f"scheduler.type={kind}", "scheduler.warmup_steps=4", "optimizer.lr=1.0"]
    settings += ["optimizer.type=sgd", f"scheduler.min_lr={0.0 if end == 1.0 else end}"]
    config = script.load_config(EXAMPLE / SIMPLE[1], settings)
    model = components.build_model(config.model, 64)
    optimizer = components.build_optimizer(config.optimizer, model)
    scheduler = components.build_scheduler(config.scheduler, optimizer, 24)
    rates = []
    for _ in range(26):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[14] == pytest.approx(halfway)
    assert rates[24:] == pytest.approx([end, end])


def test_help_teaches(tmp_path: Path) -> None:
    """The help shows commands with overrides, and says how to continue."""
    done = example(tmp_path, "--help")
    assert done.returncode == 0
    assert "examples:" in done.stdout
    assert "optimizer.lr=" in done.stdout
    assert "Ctrl-C" in done.stdout


def idx(values: np.ndarray[Any, Any]) -> bytes:
    """Return *values* as an IDX file of unsigned bytes."""
    header = bytes((0, 0, 8, values.ndim)) + struct.pack(
        f">{values.ndim}I", *values.shape
    )
    return header + values.astype(np.uint8).tobytes()


def write_mnist(folder: Path, num_train: int = 80, num_test: int = 30) -> None:
    """Write MNIST's four files, two of them gzipped: each digit a bar of its own."""
    folder.mkdir()
    for name, num_images in (("train", num_train), ("t10k", num_test)):
        labels = np.arange(num_images) % 10
        images = np.zeros((num_images, 28, 28))
        images[np.arange(num_images), 2 * labels + 4] = 255
        (folder / f"{name}-images-idx3-ubyte").write_bytes(idx(images))
        packed = gzip.compress(idx(labels))
        (folder / f"{name}-labels-idx1-ubyte.gz").write_bytes(packed)


def test_mnist_trains_from_its_own_files(tmp_path: Path) -> None:
    """The MNIST config trains on IDX files, raw and gzipped, in the folder it names."""
    write_mnist(tmp_path / "files")
    overrides = ("data.root=files", "training.batch_size=16", "scheduler.warmup_steps=5")
    done = example(tmp_path, *MNIST, *overrides)
    assert done.returncode == 0, done.stderr
    results = json.loads((experiment(tmp_path) / "results.json").read_text("utf-8"))
    assert results["macro avg"]["support"] == 30
    assert results["accuracy"] == 1.0


def test_missing_mnist_says_what_to_put_where(tmp_path: Path) -> None:
    """Without its files the MNIST config names all four and the folder, and the key."""
    done = example(tmp_path, *MNIST, "data.root=nowhere")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3"):
        assert f"{name}-ubyte" in done.stderr
    assert "t10k-labels-idx1-ubyte" in done.stderr
    assert "nowhere" in done.stderr
    assert "data.root=" in done.stderr


def test_digits_are_split_once_and_for_all(dataset: ModuleType) -> None:
    """The split is the same each time, shares no row and holds each digit's share."""
    train, again, validation = (
        dataset.load_split("digits", split) for split in ("train", "train", "validation")
    )
    assert np.array_equal(train.pixels, again.pixels)
    assert np.array_equal(train.labels, again.labels)
    assert (len(train.labels), len(validation.labels)) == (1437, 360)
    assert train.pixels.dtype == np.float32
    assert train.pixels.min() == 0.0
    assert train.pixels.max() == 1.0
    # digits holds no image twice, so a shared row would show
    assert len(np.unique(np.vstack([train.pixels, validation.pixels]), axis=0)) == 1797
    shares = np.bincount(validation.labels) / np.bincount(train.labels)
    assert np.all(np.abs(shares - 0.25) < 0.02)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_idx_is_read_as_written(dataset: ModuleType, tmp_path: Path, suffix: str) -> None:
    """An IDX file comes back with its shape and values, gzipped or not."""
    values = np.arange(2 * 3 * 5).reshape(2, 3, 5)
    raw = idx(values)
    path = tmp_path / f"images{suffix}"
    path.write_bytes(gzip.compress(raw) if suffix else raw)
    assert np.array_equal(dataset.read_idx(path, ndim=3), values)


GOOD = idx(np.ones((2, 3, 5)))
HUGE = bytes((0, 0, 8, 3)) + b"\xff" * 12


@pytest.mark.parametrize(
    ("content", "suffix", "complaint"),
    [
        (b"", "", "is not an IDX file"),
        (b"PK\x03\x04" + GOOD[4:], "", "begins with 504b0304, not 00000803"),
        (b"\0\0\x0d\x03" + GOOD[4:], "", "begins with 00000d03"),
        (idx(np.ones(5)), "", "begins with 00000801"),
        (GOOD[:10], "", "ends inside its header"),
        (idx(np.ones((2, 0, 5))), "", "it is empty"),
        (GOOD[:-1], "", "is shorter"),
        (GOOD + b"\0", "", "is longer"),
        (HUGE + b"\0" * 100, "", "4294967295 x 4294967295 x 4294967295"),
        (GOOD, ".gz", "cannot be read"),
        (gzip.compress(GOOD)[:-9], ".gz", "cannot be read"),
        (gzip.compress(GOOD)[:-8] + b"\0" * 8, ".gz", "cannot be read"),
        (gzip.compress(GOOD) + b"trailing", ".gz", "cannot be read"),
        (gzip.compress(GOOD[:-1]), ".gz", "is shorter"),
        (gzip.compress(GOOD + b"\0"), ".gz", "is longer"),
        (gzip.compress(HUGE), ".gz", "more than a file of its size can"),
    ],
)
def test_bad_idx_is_refused(
    dataset: ModuleType, tmp_path: Path, content: bytes, suffix: str, complaint: str
) -> None:
    """A file that is not exactly what its header says is refused, with its path."""
    path = tmp_path / f"images{suffix}"
    path.write_bytes(content)
    with pytest.raises(dataset.DatasetError, match=re.escape(complaint)) as caught:
        dataset.read_idx(path, ndim=3)
    assert str(path) in str(caught.value)


def test_a_folder_is_no_idx_file(dataset: ModuleType, tmp_path: Path) -> None:
    """A path that cannot be opened is reported, not raised as it is."""
    with pytest.raises(dataset.DatasetError, match="cannot be read"):
        dataset.read_idx(tmp_path, ndim=3)


@pytest.mark.parametrize(
    "header",
    [idx(np.ones((1, 28, 28))), bytes((0, 0, 8, 3)) + struct.pack(">3I", 2000, 28, 28)],
    ids=["little stated, much held", "much stated, little held"],
)
def test_no_file_takes_more_memory_than_it_is_worth(
    dataset: ModuleType, tmp_path: Path, header: bytes
) -> None:
    """Neither a gzip bomb nor a large size in a header makes the reader allocate."""
    bomb = header + bytes(64 << 20) if len(header) > 16 else header
    path = tmp_path / "images.gz"
    path.write_bytes(gzip.compress(bomb, compresslevel=1))
    tracemalloc.start()
    try:
        with pytest.raises(dataset.DatasetError):
            dataset.read_idx(path, ndim=3)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak_bytes < 1 << 20


def test_images_and_labels_must_belong_together(
    dataset: ModuleType, tmp_path: Path
) -> None:
    """Another number of labels than images, or a label above 9, is refused."""
    root = tmp_path / "files"
    write_mnist(root)
    labels = root / "train-labels-idx1-ubyte"
    labels.write_bytes(idx(np.zeros(79)))
    with pytest.raises(dataset.DatasetError, match=r"80 images.*79 labels"):
        dataset.load_split("mnist", "train", root)
    labels.write_bytes(idx(np.arange(80)))
    with pytest.raises(dataset.DatasetError, match="label 79 is 79, not a digit"):
        dataset.load_split("mnist", "train", root)


@pytest.mark.parametrize(
    ("name", "split", "complaint"),
    [
        ("cifar10", "train", "unknown data set 'cifar10': choose digits or mnist"),
        ("digits", "test", "no split 'test': choose train or validation"),
        ("mnist", "validation", "no split 'validation': choose train or test"),
        ("mnist", "train", "data.root must name the folder"),
    ],
)
def test_unknown_data_are_refused(
    dataset: ModuleType, name: str, split: str, complaint: str
) -> None:
    """A name that is not known is answered with those that are."""
    with pytest.raises(dataset.DatasetError, match=re.escape(complaint)):
        dataset.load_split(name, split)
