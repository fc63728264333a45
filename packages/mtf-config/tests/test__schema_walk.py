import pytest

from mtf_config import _schema_walk as schema
from mtf_config._tree import MISSING
from mtf_config.origin import KeyPath
from mtf_config.sections import ModelConfig


def test_lookup_tells_known_open_and_unknown_keys_apart() -> None:
    """Every key is one the schema types, one of the model's own, or none."""
    assert schema.lookup(("model",)) is ModelConfig
    assert schema.lookup(("seed",)) is int
    assert schema.lookup(("scheduler", "warmup_steps")) is int
    assert schema.lookup(("optimizer", "betas", 1)) is float
    assert schema.lookup(("model", "heads")) is schema.OPEN
    for path in [("x",), ("data", "x"), ("seed", "x"), ("optimizer", "lr", 0), (0,)]:
        assert schema.lookup(path) is schema.UNKNOWN


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (("description",), 123, True),
        (("description",), True, True),
        (("description",), "a", False),
        (("slurm", "time"), 90, True),
        (("data", "root"), None, False),
        (("data", "root"), 1, True),
        (("seed",), 1, False),
        (("model", "heads"), 1, False),
        (("no", "such"), 1, False),
    ],
)
def test_takes_text(path: KeyPath, value: object, *, expected: bool) -> None:
    """`description=123` is text although 123 alone is a number."""
    assert schema.takes_text(path, value) is expected


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (("seed",), 0),
        (("scheduler",), None),
        (("model", "hidden_size"), 512),
        (("optimizer", "betas"), [0.9, 0.999]),
        (("optimizer", "betas", 1), 0.999),
        (("checkpoint",), {"save_every_n_epochs": 1, "keep_last_n": 3}),
        *(
            (path, MISSING)
            for path in [
                *((), ("x",), (0,), ("experiment_name",), ("model",), ("model", "type")),
                *(("model", "heads"), ("model", "type", "x"), ("seed", "x")),
                *(("optimizer", "betas", 2), ("optimizer", "betas", -1)),
                *(("optimizer", "model_dump"), ("optimizer", "model_extra")),
                *(("optimizer", "x"), ("scheduler", "type"), ("optimizer", "betas", "x")),
            ]
        ),
    ],
)
def test_default_of(path: KeyPath, expected: object) -> None:
    """Placeholders find every default of the schema, and nothing that is not one."""
    assert schema.default_of(path, lambda _: False) == expected


def test_default_of_an_optional_section() -> None:
    """A key of an optional section has its default only where the section is given."""
    path = ("scheduler", "warmup_steps")
    assert schema.default_of(path, lambda at: at == ("scheduler",)) == 0
    assert schema.default_of(path, lambda _: False) is MISSING


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("optimzer", "optimizer"),
        ("Optimizer", "optimizer"),
        ("modle", "model"),
        ("lr", "optimizer.lr"),
        ("LR", "optimizer.lr"),
        ("learning_rate", "optimizer.lr"),
        ("optimizer.learning_rte", "optimizer.lr"),
        ("epochs", "training.max_epochs"),
        ("batchsize", "training.batch_size"),
        ("hiden_size", "model.hidden_size"),
        ("partition", "slurm.partition"),
        ("gpus", "slurm.gpus_per_node"),
        ("optimizer.beta", "optimizer.betas"),
        ("optimizer.batch_size", "training.batch_size"),
        ("data.name", "data.dataset_name"),
        ("data.workers", "data.num_workers"),
        ("scheduler.warmup", "scheduler.warmup_steps"),
        ("slurm.walltime", "slurm.time"),
        ("model.hidden", "model.hidden_size"),
        ("xyzzy", ""),
        ("optimizer.xyzzy", ""),
        ("seed.x", ""),
    ],
)
def test_nearest(wrong: str, right: str) -> None:
    """What people write by mistake leads to the key that they meant."""
    assert schema.nearest(tuple(wrong.split("."))) == right
