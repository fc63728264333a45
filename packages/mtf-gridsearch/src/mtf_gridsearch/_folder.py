"""The folder of a search: found again by name, made once, held by one executor.

Finding and making a folder is done under a second lock in the folder of experiments, so that
two first runs share one search.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

from mtf_gridsearch import _yaml
from mtf_gridsearch._lock import LOCK_NAME, locked, refuse_copies, sign
from mtf_gridsearch._model_class import is_same_class
from mtf_gridsearch._supply import Search
from mtf_gridsearch.errors import (
    GridError,
    SearchFolderError,
    SearchMismatchError,
)
from mtf_gridsearch.identity import canonical

__all__ = ["CONFIG_NAME", "check", "choose", "find", "foresee", "hold", "read_config"]

CONFIG_NAME = "search_config.yaml"
FINDING = ".grid_search.lock"  # in the folder of experiments

_STAMPED = re.compile(r"grid_search_(\d{8}T\d{6})")
_STAMP = "%Y%m%dT%H%M%S"
_NAME = re.compile(r"""^name: *(['"]?)([A-Za-z0-9._-]+)\1 *$""", re.MULTILINE)
_LAST_YEAR = 9998  # that another can follow
_NUM_SHOWN = 5
_CHOSEN = "bayesian"
_NUM_PARALLEL = f"{_CHOSEN}.num_parallel"


class _Absent(Enum):
    """What stands for a value that is not there."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "absent"


_ABSENT = _Absent.ABSENT


def read_config(folder: Path) -> dict[str, Any]:
    """Return the ``search_config.yaml`` of *folder*.

    Raises:
        SearchFolderError: If it cannot be read, or is none.
    """
    try:
        config = _yaml.load(folder / CONFIG_NAME)
    except GridError as error:
        reason = (
            f"{CONFIG_NAME} cannot be read ({error}); restore it, move this away, or name "
            f"the folder of your search with folder= (--folder)"
        )
        raise SearchFolderError(folder, reason) from error
    if not isinstance(config.get("name"), str):
        reason = f"{CONFIG_NAME} does not say which search it is: it has no `name`"
        raise SearchFolderError(folder, reason)
    return config


def find(name: str, *, experiments_dir: Path, folder: Path | None) -> Path | None:
    """Return the folder of the search *name*: *folder*, or the newest one; None if none.

    Raises:
        SearchFolderError: If a newer one cannot be read, which may be the one.
    """
    if folder is not None:
        return folder if (folder / CONFIG_NAME).exists() else None
    return next(_named(name, experiments_dir), None)


def _named(name: str, experiments_dir: Path) -> Iterator[Path]:
    """Yield the folders of searches called *name*, the newest first.

    Warns of one that cannot be read and says that it is another's.
    """
    for path in _stamped(experiments_dir):
        if not (path / CONFIG_NAME).exists():
            continue
        try:
            found = read_config(path)["name"]
        except SearchFolderError as error:
            found = _name_in_text(path)
            if found in (None, name):
                raise
            warnings.warn(f"passed over: {error}", stacklevel=2)
        if found == name:
            yield path


def _name_in_text(folder: Path) -> str | None:
    """Return the name that a definition gives that cannot be read as a whole."""
    with suppress(OSError), (folder / CONFIG_NAME).open("rb") as file:
        found = _NAME.search(file.read(4096).decode(errors="replace"))
        return found and found[2]
    return None


def choose(
    search: Search,
    *,
    experiments_dir: Path,
    folder: Path | None,
    entry_point: str | None = None,
) -> Path | None:
    """Return the folder in which *search* goes on; None if there is none.

    It is *folder*, or the newest of its name that was begun with the same config.

    Raises:
        SearchMismatchError: If there are such folders, and none was: as of the newest.
        SearchFolderError: If one cannot be read that may be it.
    """
    if folder is not None:
        found = find(search.name, experiments_dir=experiments_dir, folder=folder)
        if found is not None:
            check(found, search, entry_point)
        return found
    refused: SearchMismatchError | None = None
    for path in _named(search.name, experiments_dir):
        try:
            check(path, search, entry_point)
        except SearchMismatchError as error:
            refused = refused or error
        else:
            return path
    if refused is not None:
        raise refused
    return None


def check(folder: Path, search: Search, entry_point: str | None = None) -> None:
    """Refuse a folder that holds another search, or the same over another base.

    Args:
        folder: Of a search.
        search: That is to go on there.
        entry_point: What its experiments run; None where nobody knows.

    Raises:
        SearchMismatchError: If it does.
        SearchFolderError: If it cannot be read.
    """
    config = read_config(folder)
    if config["name"] != search.name:
        reason = (
            f"it holds the search {config['name']!r}, not {search.name!r}: name another"
        )
        raise SearchMismatchError(folder, reason)
    new = search.to_plain()
    # What a Bayesian search has chosen follows from all that defines it.
    is_chosen = _CHOSEN in config and _CHOSEN in new
    # A name in a section of the base is a value as any other.
    may_change = (f"base.{search.name_key}", f"{_CHOSEN}.num_trials")
    changes = [
        change
        for key in ("base", "base_class", _CHOSEN, *(("grids",) if is_chosen else ()))
        for change in _changes(
            config.get(key, _ABSENT), new.get(key, _ABSENT), key, may_change
        )
    ]
    if changes:
        shown = "; ".join(changes[:_NUM_SHOWN])
        more = f"; and {len(changes) - _NUM_SHOWN} more" * (len(changes) > _NUM_SHOWN)
        reason = (
            f"its search {search.name!r} was begun with another config ({shown}{more}), and "
            f"results of both must not mix: go back to that, or start a new search with "
            f"new=True (--new)"
        )
        raise SearchMismatchError(folder, reason)
    begun_with = config.get("entry_point")
    if entry_point and begun_with and not _is_same(str(begun_with), entry_point):
        reason = (
            f"its search {search.name!r} runs {begun_with}, not {entry_point}, and results "
            f"of both must not mix: go back to that, or start a new search with new=True "
            f"(--new); if it is the same, correct `entry_point` in {CONFIG_NAME}"
        )
        raise SearchMismatchError(folder, reason)


def _is_same(old: str, new: str) -> bool:
    """Tell whether two entry points are one: a script may have been moved."""
    if old == new:
        return True
    before, now = Path(old), Path(new)
    with suppress(OSError, ValueError):
        return before.samefile(now)
    return before.is_absolute() and not before.exists() and before.name == now.name


@contextmanager
def hold(
    search: Search,
    *,
    experiments_dir: Path,
    folder: Path | None,
    new: bool,
    entry_point: str | None = None,
) -> Iterator[Path]:
    """Find or make the folder of *search*, and hold its lock.

    Raises:
        SearchBusyError: If another process holds it.
        SearchMismatchError: If the folder belongs to another search, or another base or
            entry point.
        SearchFolderError: If it cannot be read, made or locked.
    """
    with ExitStack() as held:
        finding = nullcontext(0) if folder else locked(_made(experiments_dir), FINDING)
        with finding:
            path = _chosen(
                search,
                experiments_dir=experiments_dir,
                folder=folder,
                new=new,
                entry_point=entry_point,
            )
            is_made = path is None
            if path is None:
                path = _made(folder or _next_stamped(experiments_dir))
                _refuse_strangers(path)  # before anything is left there
            lock = held.enter_context(locked(path, LOCK_NAME))
            if is_made:
                _refuse_strangers(path)
            else:
                check(path, search, entry_point)
                refuse_copies(path, lock)
            _save(search, path, entry_point)
            sign(path, lock, is_held=True)
        try:
            yield path
        finally:
            sign(path, lock, is_held=False)


def foresee(
    search: Search,
    *,
    experiments_dir: Path,
    folder: Path | None,
    new: bool,
    entry_point: str | None = None,
) -> Path | None:
    """Return the folder in which `hold` would go on; None if it would make one.

    Leaves no trace.

    Raises:
        SearchBusyError: If it is a copy of one in which something may run yet.
        SearchMismatchError: As `hold`.
        SearchFolderError: As `hold`.
    """
    found = _chosen(
        search,
        experiments_dir=experiments_dir,
        folder=folder,
        new=new,
        entry_point=entry_point,
    )
    if found is None and folder is not None and folder.exists():
        _refuse_strangers(folder)
    if found is not None and (found / LOCK_NAME).is_file():
        try:
            lock = os.open(found / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            reason = f"its {LOCK_NAME} cannot be opened: {error.strerror or error}"
            raise SearchFolderError(found, reason) from error
        try:
            refuse_copies(found, lock)
        finally:
            os.close(lock)
    return found


def _chosen(
    search: Search,
    *,
    experiments_dir: Path,
    folder: Path | None,
    new: bool,
    entry_point: str | None,
) -> Path | None:
    if not new:
        return choose(
            search,
            experiments_dir=experiments_dir,
            folder=folder,
            entry_point=entry_point,
        )
    if folder is not None and (folder / CONFIG_NAME).exists():
        reason = "it holds a search already: a new one needs another folder"
        raise SearchFolderError(folder, reason)
    return None


def _save(search: Search, folder: Path, entry_point: str | None) -> None:
    """Write the definition of *search*, if it is another than was written."""
    path = folder / CONFIG_NAME
    if entry_point is None and path.exists():
        entry_point = read_config(folder).get("entry_point")
    runs = {} if entry_point is None else {"entry_point": entry_point}
    text = _yaml.dump({**search.to_plain(), **runs})
    try:
        if not path.exists() or path.read_text("utf-8") != text:
            _yaml.write_atomically(path, text)
    except OSError as error:
        reason = f"{CONFIG_NAME} cannot be written: {error.strerror or error}"
        raise SearchFolderError(folder, reason) from error


def _refuse_strangers(folder: Path) -> None:
    """Refuse a folder that holds anything but what a search that never began leaves."""
    try:
        names = {p.name for p in folder.iterdir()} - {LOCK_NAME, CONFIG_NAME}
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
        raise SearchFolderError(folder, reason) from error
    found = sorted(name for name in names if not _yaml.ASIDE.fullmatch(name))
    if found:
        reason = f"it has no {CONFIG_NAME} but holds {found[0]!r}: name an empty folder"
        raise SearchMismatchError(folder, reason)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = f"it cannot be made: {error.strerror or error}"
        raise SearchFolderError(folder, reason) from error
    return folder


def _stamped(experiments_dir: Path) -> list[Path]:
    """Return the folders that searches were given, the newest first."""
    try:
        names = [path.name for path in experiments_dir.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as error:
        reason = f"it cannot be read: {error.strerror or error}"
        raise SearchFolderError(experiments_dir, reason) from error
    stamped = sorted(filter(_time_of, names), reverse=True)
    return [experiments_dir / name for name in stamped]


def _time_of(name: str) -> datetime | None:
    """Return the time in the name of a folder; None if none is there or can follow it."""
    match = _STAMPED.fullmatch(name)
    with suppress(ValueError):
        time = datetime.strptime(match[1] if match else "", _STAMP)  # noqa: DTZ007 -- UTC
        return time if time.year <= _LAST_YEAR else None
    return None


def _next_stamped(experiments_dir: Path) -> Path:
    """Return a name for a new folder: later than all others, even if the clock is not."""
    stamp = datetime.now(UTC).replace(tzinfo=None)
    for newest in _stamped(experiments_dir)[:1]:
        if last := _time_of(newest.name):
            stamp = max(stamp, last + timedelta(seconds=1))
    return experiments_dir / f"grid_search_{stamp.strftime(_STAMP)}"


def _changes(old: Any, new: Any, key: str, may_change: Collection[str]) -> Iterator[str]:
    """Yield how two plain values differ, but for what may change."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        for name in sorted({*old, *new}):
            if f"{key}.{name}" in may_change:
                continue
            if f"{key}.{name}" == _NUM_PARALLEL and not old.get("in_order"):
                continue  # it says how many run, not what they are
            inner = old.get(name, _ABSENT), new.get(name, _ABSENT)
            yield from _changes(*inner, f"{key}.{name}", may_change)
    elif (key == "base.entry_point" and _normal(old) == _normal(new)) or (
        key == "base_class" and is_same_class(old, new)
    ):
        return
    elif old is not new and (_ABSENT in (old, new) or canonical(old) != canonical(new)):
        yield f"{key} was {old!r}, is {new!r}"


def _normal(entry_point: Any) -> Any:
    """Return one spelling of a path, such as ``train.py`` for ``./train.py``."""
    is_text = isinstance(entry_point, str) and entry_point
    return os.path.normpath(entry_point) if is_text else entry_point
