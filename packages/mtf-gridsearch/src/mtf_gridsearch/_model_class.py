"""The class of a base config that is a pydantic model, named in ``search_config.yaml``.

It is imported where a search is made of such a file, as the entry point of experiments is
where they run; nothing else in the file names code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mtf_gridsearch._plain import shown
from mtf_gridsearch._written import read_back
from mtf_gridsearch.errors import GridError

if TYPE_CHECKING:
    from pydantic import BaseModel

__all__ = ["class_name", "is_same_class", "model_of"]

_NAME = re.compile(r"([A-Za-z_]\w*(?:\.\w+)*):([A-Za-z_]\w*(?:\.\w+)*)", re.ASCII)


def class_name(kind: type) -> str:
    """Return what `model_of` finds a class by: ``module:Name``."""
    return f"{kind.__module__}:{kind.__qualname__}"


def is_same_class(one: Any, other: Any) -> bool:
    """Tell whether two names may be of one class: that of a script has no module."""
    names = [str(name).partition(":") for name in (one, other)]
    in_script = any(module == "__main__" for module, _, _ in names)
    return one == other or (in_script and names[0][2] == names[1][2])


def model_of(name: str, values: Mapping[str, Any]) -> BaseModel:
    """Return the base config that the class called *name* makes of written *values*.

    Raises:
        GridError: If there is no such class here, or it refuses them.
    """
    kind = _kind(name)
    try:
        return read_back(kind, lambda: values)
    except Exception as error:  # a validator of the user's may raise any
        place = "base"
        reason = f"{name} refuses it: {type(error).__name__}: {error}"
        raise GridError(place, reason) from error


def _kind(name: str) -> type[BaseModel]:
    from pydantic import BaseModel  # noqa: PLC0415 -- only where used

    place, match = "base_class", _NAME.fullmatch(name)
    if match is None or match[1] == "__main__":
        reason = (
            f"{shown(name)} can be imported by nobody: run the script that defines it, or "
            f"define the class in a module, and write it as module:Class"
        )
        raise GridError(place, reason)
    try:
        found: Any = importlib.import_module(match[1])
        for part in match[2].split("."):
            found = getattr(found, part)
    except Exception as error:  # the module is the user's, and may raise any
        reason = f"{name} cannot be imported ({type(error).__name__}: {error})"
        raise GridError(place, f"{reason}: run this where it can be") from error
    if not (isinstance(found, type) and issubclass(found, BaseModel)):
        raise GridError(place, f"{name} is no pydantic model")
    return found
