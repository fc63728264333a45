"""A base config that is a pydantic model: configs made by its class, and how it is written.

Relied on for: an experiment is what the class reads of plain values, and reads back equal from
what is written of it; it shares nothing with the base; what the class works out from other
values is worked out again.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import takewhile
from typing import Any

from pydantic import BaseModel, RootModel, ValidationError

from mtf_gridsearch._base import NAME, Base, Fault, MappingBase, UnfitError
from mtf_gridsearch._effect import (
    at,
    fallen_back,
    has_same,
    is_taken,
    lost,
    unread,
    without_effect,
)
from mtf_gridsearch._form import Form, Forms, values_of
from mtf_gridsearch._model_class import class_name
from mtf_gridsearch._plain import plain, shown
from mtf_gridsearch._schema import fields, tag_values
from mtf_gridsearch._setting import Setter, Way
from mtf_gridsearch._written import (
    differences,
    differing,
    dumped,
    read_back,
    written,
)
from mtf_gridsearch.errors import GridError

__all__ = ["ModelBase", "base_of"]

_PLACE = "base config"
_AS_READ = "give it as its field reads it"
_LEAVE_OUT = (
    "leave out secrets, excluded fields, custom serializers, aliases that are not read, and "
    "validators that ask which fields were set or need a context"
)


def base_of(config: Any) -> Base:
    """Return *config* as a base.

    Raises:
        GridError: If a mapping holds what is not plain, if what would be written of a model
            does not read back equal, or if that is a `RootModel`.
        TypeError: If it is neither a mapping nor a pydantic model.
    """
    kind = type(config).__name__
    if isinstance(config, RootModel):
        reason = (
            f"{kind} is a RootModel, whose values have no names: make it a field of a"
        )
        raise GridError(_PLACE, f"{reason} model, or give its root")
    if isinstance(config, BaseModel):
        return ModelBase(config)
    if isinstance(config, Mapping):
        return MappingBase(config)
    message = f"the base config is a mapping or a pydantic model, not a {kind}"
    raise TypeError(message)


class ModelBase(Base):
    """What a model was when it was given."""

    _is_strict = False
    """Whether its class reads plain values from JSON alone."""

    def __init__(self, config: BaseModel) -> None:
        self._kind = type(config)
        self.class_name = class_name(self._kind)
        self.by_alias, self._config = _written_form(config)
        field = self._kind.model_fields.get(NAME)
        self._has_name = field is not None
        if self.by_alias and field is not None:
            self.name_key = field.serialization_alias or NAME
        try:
            self._kind.model_validate(self.plain)
        except Exception:  # noqa: BLE001 - a validator of the user's may raise any
            self._is_strict = True
        self._setter = Setter(self._config, by_alias=self.by_alias)
        self._forms = Forms(
            config,
            self.plain,
            self._config,
            lambda text: self._read(partial(json.loads, text)),
            by_alias=self.by_alias,
        )

    @property
    def name(self) -> Any:
        return getattr(self._config, NAME, None)

    @property
    def plain(self) -> dict[str, Any]:
        return self.plain_of(self._config)

    def plain_of(self, config: BaseModel | Mapping[str, Any]) -> dict[str, Any]:
        values = config
        if isinstance(config, BaseModel):
            values = written(config, by_alias=self.by_alias)
        return plain(values, _PLACE)  # type: ignore[no-any-return]

    def applied(self, parameters: Mapping[str, Any], name: str) -> BaseModel:
        unknown = [self._setter.unknown(*item) for item in parameters.items()]
        if faults := [fault for fault in unknown if fault]:
            raise UnfitError(faults)
        form = self._form(parameters)
        result = self._made(form, parameters, name)
        for key, value in parameters.items():
            faults += without_effect(self._config, result, value, key)
            if isinstance(value, dict):
                faults += self._fallen_back(result, value, key)
        faults += () if faults else self._ignored(result, parameters, name)
        faults += () if faults else self._frozen(form, parameters, name)
        if faults:
            raise UnfitError(faults)
        return self._come_back(result, parameters)

    def made_again(
        self, config: Any, parameters: Mapping[str, Any]
    ) -> Iterator[tuple[str, str, str]]:
        seen = {NAME}
        for path in differences(values_of(self._config), values_of(config)):
            if any(path[:end] in self._forms.unset for end in range(1, len(path) + 1)):
                continue
            key = ".".join(takewhile(lambda part: not part.isdecimal(), path))
            is_set = any(_is_below(key, [k]) or _is_below(k, [key]) for k in parameters)
            if not is_set and key not in seen:
                seen.add(key)
                yield key, shown(at(self._config, key)), shown(at(config, key))
        for key, value in parameters.items():
            made = at(config, key)
            if _is_number(value) and _is_number(made) and value != made:
                yield key, shown(value), shown(made)
        for above in dict.fromkeys(key.rpartition(".")[0] for key in parameters):
            if not above:
                continue
            old, new = (type(at(each, above)) for each in (self._config, config))
            inside = [k[len(above) + 1 :] for k in parameters if _is_below(k, [above])]
            is_chosen = any(tag_values(fields(old).get(name)) for name in inside)
            if fields(old) and fields(new) and old is not new and not is_chosen:
                yield above, f"a {old.__name__}", f"a {new.__name__}"

    def _fallen_back(
        self, result: BaseModel, value: dict[str, Any], key: str
    ) -> list[Fault]:
        old, new = (at(config, key) for config in (self._config, result))
        if not (faults := list(fallen_back(old, new, value, key))):
            return faults
        made = self._forms.into(frozenset({tuple(key.split("."))})).out
        return [fault for fault in faults if tuple(fault[0].split(".")) not in made]

    def _read(self, make: Callable[[], dict[str, Any]]) -> BaseModel:
        return read_back(self._kind, make, json_first=self._is_strict)

    def _form(self, parameters: Mapping[str, Any]) -> Form:
        """Return the base as *parameters* need it.

        Raises:
            UnfitError: If the class does not read it so.
        """
        sections = {tuple(key.split(".")[:-1]) for key in parameters}
        form = self._forms.into(frozenset(sections))
        if form.text is None:
            inside = [s for s in sections if s == form.wrong[: len(s)]]
            place = max((".".join(s) for s in inside or sections), key=len, default="")
            reason = (
                "its class makes another config of its fields, though none is changed, so "
                "values would be lost: "
            )
            reason += f"set {place} as a whole" if place else _LEAVE_OUT
            raise UnfitError([(place, reason)])
        return form

    def _made(self, form: Form, parameters: Mapping[str, Any], name: str) -> BaseModel:
        """Return what the class makes of *form* with *parameters*.

        If it makes nothing of that by itself, it gets all that was set.

        Raises:
            UnfitError: If it refuses them.
        """
        text = form.text or "{}"
        given = {NAME: name, **parameters} if self._has_name else parameters
        ways: dict[str, Way] = {}

        def make() -> dict[str, Any]:
            values: dict[str, Any] = json.loads(text)
            ways.update(self._setter.set(values, given))
            return values

        try:
            return self._read(make)
        except UnfitError:  # of a place that is no section
            raise
        except Exception as error:  # noqa: BLE001 - a validator of the user's may raise any
            if form.text != form.kept:
                with suppress(UnfitError):
                    return self._made(form._replace(text=form.kept), parameters, name)
            if not isinstance(error, ValidationError):
                reason = f"{type(error).__name__}: {error}"
                raise UnfitError([("", reason)]) from None
            raise UnfitError([_fault(e, ways) for e in error.errors()]) from None

    def _ignored(
        self, result: BaseModel, parameters: Mapping[str, Any], name: str
    ) -> Iterator[Fault]:
        """Yield what changes nothing beside the other parameters."""
        for key, value in parameters.items():
            is_plain = not isinstance(value, dict | list)
            if len(parameters) < 2 or not is_plain or is_taken(result, value, key):  # noqa: PLR2004
                continue
            others = {k: v for k, v in parameters.items() if k != key}
            with suppress(UnfitError):
                other = self._made(self._form(others), others, name)
                if not any(differences(values_of(result), values_of(other))):
                    yield unread(result, key)

    def _frozen(
        self, form: Form, parameters: Mapping[str, Any], name: str
    ) -> Iterator[Fault]:
        """Yield what the class makes with its section as a whole, which is set in here."""
        left = [(s, key) for s, key in form.frozen if not _is_below(key, parameters)]
        if not left:
            return
        sections = [section for section, _ in left]
        outside = {k: v for k, v in parameters.items() if not _is_below(k, sections)}
        try:
            other = self._made(self._form(outside), outside, name)
        except UnfitError:  # then the class makes nothing of it
            return
        for section, key in left:
            above, _, last = key.rpartition(".")
            old, new = at(self._config, key), at(other, key)
            if not has_same(at(other, above), at(self._config, above), last):
                reason = (
                    f"{shown(old)} of the base config follows from other values where "
                    f"{section} is made as a whole, and would be {shown(new)} here: set "
                    f"{key} in the same experiment"
                )
                yield key, reason

    def _come_back(self, result: BaseModel, parameters: Mapping[str, Any]) -> BaseModel:
        """Return *result*, or, where a default is of another type than its field, what is read.

        Raises:
            UnfitError: If what is written of it is not read, or as something else.
        """
        try:
            values = partial(dumped, result, by_alias=self.by_alias)
            back = read_back(self._kind, values, json_first=self._is_strict)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            reason = f"its config.yaml could not be read ({_told(error)}): {_LEAVE_OUT}"
            raise UnfitError([("", reason)]) from None
        left = lost(result, back)
        keys = {
            key
            for key in parameters
            for each in left
            if _is_below(key, [p := ".".join(each.path)]) or _is_below(p, [key])
        }
        faults = [
            (key, _other(at(result, key), at(back, key), "from its config.yaml"))
            for key in parameters
            if key in keys
        ]
        if left and not faults:
            faults = [
                (".".join(path), _other(one, other, "from its config.yaml"))
                for path, one, other in left
            ]
        if faults:
            raise UnfitError(faults)
        return back if differing(result, back) else result


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_below(key: str, keys: Collection[str]) -> bool:
    """Tell whether *key* is one of *keys*, or below one."""
    return any(key == each or key.startswith(f"{each}.") for each in keys)


def _written_form(config: BaseModel) -> tuple[bool, BaseModel]:
    """Return whether *config* is written by its aliases, and what reads back: it is equal.

    If both forms do, it is the one of which more is read: what is not read comes back equal
    only as long as it is the default.

    Raises:
        GridError: If it does not in either form.
    """
    wrong = ""
    forms: list[tuple[int, bool, BaseModel]] = []
    for by_alias in (True, False):
        try:
            values = written(config, by_alias=by_alias)
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            wrong = wrong or f"{_told(error)}: {_LEAVE_OUT}"
            continue
        plain(values, _PLACE)
        try:
            back = read_back(type(config), partial(copy.deepcopy, values))
        except Exception as error:  # noqa: BLE001 - whatever a model of the user's raises
            wrong = wrong or f"{_told(error)}: {_AS_READ}, or {_LEAVE_OUT}"
            continue
        if left := lost(config, back):
            path, old, new = left[0]
            wrong = f"{'.'.join(path)}: {_other(old, new)}"
        else:
            forms.append((_num_unset(back), by_alias, back))
    if forms:
        _, by_alias, back = min(forms, key=lambda form: form[0])
        return by_alias, back
    reason = (
        f"what would be written of it does not read back equal, so experiments would get "
        f"other values: {wrong}"
    )
    raise GridError(_PLACE, reason)


def _num_unset(value: Any) -> int:
    """Return how many fields of the models in *value* were not set."""
    if isinstance(value, BaseModel):
        unset = type(value).model_fields.keys() - value.model_fields_set
        return len(unset) + sum(
            _num_unset(getattr(value, n)) for n in value.model_fields_set
        )
    if isinstance(value, Mapping):
        return sum(map(_num_unset, value.values()))
    if isinstance(value, list | tuple | set | frozenset):
        return sum(map(_num_unset, value))
    return 0


def _other(before: Any, after: Any, where: str = "") -> str:
    old, new = shown(before), shown(after)
    fix = _LEAVE_OUT if type(before) is type(after) else _AS_READ
    as_what = (new if new != old else "another") + f" {where}" * bool(where)
    return f"{old} would be read as {as_what}: {fix}"


def _told(error: Exception) -> str:
    if not isinstance(error, ValidationError):
        return f"{type(error).__name__}: {error}"
    first = error.errors()[0]
    return f"{'.'.join(map(str, first['loc']))}: {first['msg']}, found {shown(first['input'])}"


def _fault(error: Any, ways: Mapping[str, Way]) -> Fault:
    place = ".".join(str(part) for part in error["loc"])
    for key, way in ways.items():
        read = ".".join(part for part, _ in way)
        if _is_below(place, [read]):
            place = f"{key}{place.removeprefix(read)}"
            break
        if _is_below(read, [place]):
            place = key
            break
    return place, f"{error['msg']}, found {shown(error['input'])}"
