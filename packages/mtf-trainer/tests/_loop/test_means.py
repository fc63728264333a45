from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.fabric import Fabric

from mtf_trainer._loop.means import Means


def test_means_weigh_by_samples_and_start_anew(fabric: Fabric) -> None:
    """Batches count by their samples, also where a value is not in all of them."""
    means = Means(fabric)
    means.add(torch.tensor(1.0), None, 3)
    means.add(torch.tensor(5.0), {"loss": torch.tensor(5.0), "right": 0.5}, 1)
    means.add(torch.tensor(3.0), {"right": torch.ones(()).bool()}, 1)

    assert means.num_samples == 5
    values, counts = means.take()
    assert values == {"loss": 2.2, "right": 0.75}
    assert counts == {"loss": 5, "right": 2}
    assert means.num_samples == 0
    assert means.take()[0] == {"loss": 0.0}


def test_adding_keeps_no_graph(fabric: Fabric) -> None:
    """What is added does not keep the graph of a step alive."""
    weight = torch.ones((), requires_grad=True)
    means = Means(fabric)

    means.add(weight * 2, {"norm": weight * 3}, 1)

    assert not means._loss_sum.requires_grad
    assert not means._sums["norm"].requires_grad


@pytest.mark.parametrize(
    ("others", "error", "message"),
    [
        ({"lr": 0.1}, ValueError, "'lr', which every line has already"),
        ({"name": "x"}, TypeError, "'name': 'x'; metrics are scalars by name"),
        ({"rows": torch.ones(2)}, TypeError, "metrics are scalars by name"),
        ({3: 1.0}, TypeError, "metrics are scalars by name"),
    ],
)
def test_other_values_are_refused(
    fabric: Fabric, others: dict[Any, Any], error: type[Exception], message: str
) -> None:
    """A metric that is no scalar, or takes a reserved name, is named in the error."""
    with pytest.raises(error, match=message):
        Means(fabric).add(torch.tensor(1.0), others, 1)
