"""The job's side of a code snapshot: make the checkout, prove it, remove it.

A script of its own: it imports nothing but the standard library and needs nothing but git,
so a copy of it runs on a bare node::

    python3 -I checkout.py make --repository REPO --commit COMMIT --folder CODE
    python3 -I checkout.py prove --repository REPO --commit COMMIT --folder CODE
    python3 -I checkout.py remove --folder CODE --when success --status $?

It exits with 0, or with 1 and the reason. REPO is read only, and gets no worktree.

A folder is proven by its bytes: the ids of its files are computed here, from them the ids
of its trees as git does, and the last must be the one in the commit, whose own id is
computed too. A file is what the commit stores of it, byte for byte: rules for line ends,
encodings and keywords are not applied. Only where attributes name a filter (git-lfs, for
one) does that make the file; git must then make the commit's bytes of it, or it of them,
and a filter that git does not have here is an error. A folder that appears is proven: it is
made aside and renamed. Of empty folders, owners and dates nothing is said.

It does not know who runs it, nor what in the folder is run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

__all__ = [
    "WHOLE",
    "CheckoutError",
    "by_attributes",
    "check_filters",
    "configuration",
    "filters_required",
    "git_environ",
    "main",
    "make",
    "prove",
    "remove",
    "run_git",
    "without_secrets",
]

TIMEOUT_S = 600.0

# What would run a program of the repository, write outside the snapshot, change its meaning,
# or have git pass over files. Filters stay: they are part of the code.
_SETTINGS = {
    "core.checkStat": "default",
    "core.fsmonitor": "false",
    "core.hooksPath": os.devnull,
    "core.ignoreCase": "false",
    "core.ignoreStat": "false",
    "core.logAllRefUpdates": "false",
    "core.protectHFS": "false",
    "core.protectNTFS": "false",
    "core.safecrlf": "false",
    "core.splitIndex": "false",
    "core.trustctime": "true",
    "gc.auto": "0",
    "i18n.commitEncoding": "UTF-8",
    "maintenance.auto": "false",
    "submodule.recurse": "false",
}
# A checkout is whole and as stored, whatever the user's is.
WHOLE = {
    "core.autocrlf": "false",
    "core.eol": "lf",
    "core.fileMode": "true",
    "core.sparseCheckout": "false",
    "core.symlinks": "true",
}
_OPTIONS = ("--no-replace-objects", "--literal-pathspecs", "--no-optional-locks")
# How the user gets at repositories, and what stands for the user's configuration.
_ACCESS = re.compile(
    r"GIT_(EXEC_PATH|ASKPASS|SSH(_COMMAND|_VARIANT)?|(SSL|HTTP|PROXY)_\w+|ALLOW_PROTOCOL|"
    r"PROTOCOL_FROM_USER|DISCOVERY_ACROSS_FILESYSTEM|"
    r"CONFIG_(GLOBAL|SYSTEM|NOSYSTEM|COUNT|(KEY|VALUE)_\d+))"
)
_NUM_SHOWN = 5
_NUM_CHARS_SHOWN = 300
_NUM_BLOBS = 500  # read at once
_OF_FILTERS = (b"clean", b"smudge", b"process")
_CHUNK_BYTES = 1 << 20
_REGULAR, _EXECUTABLE, _LINK = b"100644", b"100755", b"120000"
_TREE, _GITLINK = b"40000", b"160000"


class CheckoutError(Exception):
    """The code cannot be checked out, or is not what it should be; ``str()`` says why."""


def git_environ(**extra: str) -> dict[str, str]:
    """Return the environment for git, without what leads it elsewhere.

    Of the ``GIT_*`` variables of this process, those stay that say how the user gets at
    repositories (``GIT_SSH_COMMAND``, for one) or stand for the user's configuration. Others
    would name another repository, index, working tree or store of objects.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("GIT_") or _ACCESS.fullmatch(name)
    }
    return {**kept, "GIT_TERMINAL_PROMPT": "0", **extra}


def run_git(
    *args: str | bytes,
    cwd: Path,
    environ: Mapping[str, str],
    stdin: bytes = b"",
    settings: Mapping[str, str] | None = None,
    timeout_s: float = TIMEOUT_S,
    output: int = subprocess.PIPE,
) -> bytes:
    """Run git, with nothing of the repository run by it but filters; return its output.

    Args:
        args: Its command and that command's arguments.
        cwd: Where.
        environ: All of its environment.
        stdin: What it reads.
        settings: Configuration beyond what every call has.
        timeout_s: When to give up, in seconds.
        output: Where it writes; nothing is returned then.

    Raises:
        CheckoutError: If there is no git, or it fails or takes too long.
    """
    pairs = {**_SETTINGS, **(settings or {})}.items()
    config = [part for key, value in pairs for part in ("-c", f"{key}={value}")]
    argv = ["git", *_OPTIONS, *config, *args]
    shown = without_secrets(" ".join(("git", *map(os.fsdecode, args))))
    shown = shown[:_NUM_CHARS_SHOWN] + " ..." * (len(shown) > _NUM_CHARS_SHOWN)
    try:
        with subprocess.Popen(
            argv,
            cwd=cwd,
            env=environ,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.PIPE,
        ) as process:
            try:
                out, err = process.communicate(stdin, timeout_s)
            except BaseException:
                process.kill()
                raise
    except FileNotFoundError as error:
        where = "there is no git on PATH" if cwd.is_dir() else f"there is no folder {cwd}"
        msg = f"`{shown}` cannot be run: {where}"
        raise CheckoutError(msg) from error
    except subprocess.TimeoutExpired as error:
        msg = f"`{shown}` took longer than {timeout_s:g} s in {cwd}: try again, or look there"
        raise CheckoutError(msg) from error
    if process.returncode:
        said = without_secrets(err.decode("utf-8", "backslashreplace").strip())
        msg = f"`{shown}` exited {process.returncode} in {cwd}: {said}"
        raise CheckoutError(msg)
    return out or b""


def without_secrets(text: str) -> str:
    """Return *text* without names, passwords, queries and fragments in its addresses.

    An address whose password is not written as it should be, with a slash or an at sign in
    it, loses that too; so one with a port and an at sign in its path loses its host.

    >>> without_secrets("see https://me:p/w@host/x.git?token=abc and https://host/y")
    'see https://***@host/x.git?*** and https://host/y'
    """
    text = re.sub(r"://([^/\s]*|[^/\s]*:\S*)@", "://***@", text)
    return re.sub(r"(://[^\s?#]*)[?#]\S+", r"\1?***", text)


def by_attributes(
    git: Callable[..., bytes],
    paths: Collection[bytes],
    *names: str,
    where: Collection[str] = ("--cached",),
) -> list[dict[bytes, bytes]]:
    """Return, for each attribute, those of *paths* that have a value of it, with that.

    Args:
        git: Runs git on an index, given its arguments and ``stdin``.
        paths: Which.
        names: Of the attributes.
        where: Options of ``git check-attr``; by default the rules in the index count.

    Raises:
        CheckoutError: If git fails.
    """
    values: dict[bytes, dict[bytes, bytes]] = {name.encode(): {} for name in names}
    if paths:
        stdin = b"".join(path + b"\0" for path in paths)
        whole = ("-c", "core.sparseCheckout=false")  # else rules left away do not count
        said = git(*whole, "check-attr", *where, "-z", "--stdin", *names, stdin=stdin)
        fields = iter(said.split(b"\0")[:-1])
        for path, name, value in zip(fields, fields, fields, strict=True):
            if value not in {b"unspecified", b"unset", b"set", b""}:
                values[name][path] = value
    return list(values.values())


def configuration(git: Callable[..., bytes]) -> dict[bytes, bytes]:
    """Return what git is configured with, by key, given what runs it.

    Raises:
        CheckoutError: If git fails.
    """
    lines = (line.partition(b"\n") for line in git("config", "--list", "-z").split(b"\0"))
    return {key: value for key, _, value in lines}


def check_filters(config: Mapping[bytes, bytes], filters: Mapping[bytes, bytes]) -> None:
    """Refuse a filter that git does not have here: it would take files as stored.

    Args:
        config: Git's configuration.
        filters: By path.

    Raises:
        CheckoutError: If one is missing. What is stored is a pointer, with git-lfs.
    """
    for path, name in filters.items():
        if not {b"filter.%s.%s" % (name, of) for of in _OF_FILTERS} & config.keys():
            driver = os.fsdecode(name)
            msg = (
                f"{os.fsdecode(path)!r} and its like go through the filter {driver!r}, which "
                f"git does not have here: set it up (for lfs: load git-lfs, `git lfs "
                f"install`); or, to take what is stored in its place, `git config "
                f"filter.{driver}.smudge cat` in the repository"
            )
            raise CheckoutError(msg)


def filters_required(config: Mapping[bytes, bytes]) -> list[str]:
    """Return options of git by which it fails where a filter fails to make a file."""
    makes = re.compile(rb"filter\.(.+)\.(?:smudge|process)", re.DOTALL)
    found = (makes.fullmatch(key) for key, value in config.items() if value)
    names = sorted({os.fsdecode(match[1]) for match in found if match})
    return [part for name in names for part in ("-c", f"filter.{name}.required=true")]


class _Entry(NamedTuple):
    mode: bytes
    oid: str


class _Commit(NamedTuple):
    """A commit, checked, and what is in it, by path."""

    oid: str
    git_dir: Path
    tree: str
    entries: dict[str, _Entry]
    algorithm: str

    def run(self, *args: str, folder: Path, index: Path, stdin: bytes = b"") -> bytes:
        """Run git with *folder* as the working tree."""
        environ = git_environ(
            GIT_DIR=str(self.git_dir),
            GIT_WORK_TREE=str(folder),
            GIT_INDEX_FILE=str(index),
        )
        return run_git(*args, cwd=folder, environ=environ, stdin=stdin, settings=WHOLE)


def make(repository: Path, commit: str, folder: Path, *, replace: bool = False) -> Path:
    """Make *folder* the code of *commit*, and prove it.

    Several processes on several hosts may do so at once: one makes it, all prove it. What is
    there already is proven and used.

    Args:
        repository: Which holds the commit: its folder, or its ``.git``.
        commit: Its id in full.
        folder: Where; its parents are made.
        replace: Whether to make anew a folder that is there and is not proven. Only where
            nobody else uses it.

    Returns:
        The folder, absolute.

    Raises:
        CheckoutError: If it cannot be made, or is not what it should be.
        OSError: If the folder cannot be written.
    """
    folder = folder.absolute()
    if folder.is_dir():
        try:
            return prove(repository, commit, folder)
        except CheckoutError:
            if not replace:
                raise
        remove(folder)
    known = _open(repository.absolute(), commit)
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = _aside(folder)
    try:
        code, index = aside / "code", aside / "index"
        code.mkdir()
        try:
            git = partial(known.run, folder=code, index=index)
            strict = filters_required(configuration(git))
            git(*strict, "read-tree", "--reset", "-u", commit)
        except CheckoutError as error:
            msg = (
                f"{commit} cannot be checked out: {error}. If a filter failed: this node "
                f"lacks its program (git-lfs, for one), or what that fetches"
            )
            raise CheckoutError(msg) from error
        _check(known, code, index, is_new=True)
        _mark(folder).touch()  # before the folder: what has no mark is never removed
        try:
            code.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
            return prove(repository, commit, folder)  # another process was first
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def prove(repository: Path, commit: str, folder: Path) -> Path:
    """Prove that *folder* holds the code of *commit*, and nothing else.

    Args:
        repository: Which holds the commit: its folder, or its ``.git``.
        commit: Its id in full.
        folder: Which.

    Returns:
        The folder, absolute.

    Raises:
        CheckoutError: If it does not; files that differ are named.
        OSError: If the folder cannot be read.
    """
    folder = folder.absolute()
    known = _open(repository.absolute(), commit)
    with tempfile.TemporaryDirectory(prefix="mtf-index-") as scratch:
        index = Path(scratch, "index")
        known.run("read-tree", commit, folder=folder, index=index)
        _check(known, folder, index)
    return folder


def remove(folder: Path, *, when: str = "always", status: int = 0) -> bool:
    """Remove a folder that `make` made; return whether it did.

    Args:
        folder: Which. What is not there is removed already.
        when: ``always``; ``success``, which keeps it for people where *status* is not 0; or
            ``never``.
        status: How the job ended.

    Raises:
        CheckoutError: If the folder was not made by `make`.
        ValueError: If *when* is none of the three.
    """
    if when not in {"always", "success", "never"}:
        msg = f"when is {when!r}: one of always, success, never"
        raise ValueError(msg)
    folder = folder.absolute()
    if when == "never" or (when == "success" and status != 0):
        return False
    if not _mark(folder).is_file():
        if folder.exists():
            msg = f"{folder} was not made as a checkout and stays: remove it yourself"
            raise CheckoutError(msg)
        return False
    with suppress(FileNotFoundError):
        folder.rename(_aside(folder))  # at once: nobody proves or runs one half
    ours = re.compile(rf"\.{re.escape(folder.name)}\.[a-z0-9_]{{8}}\.part")
    for left in list(folder.parent.iterdir()):
        if ours.fullmatch(left.name):
            shutil.rmtree(left, ignore_errors=True)
    _mark(folder).unlink(missing_ok=True)
    return True


def _mark(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.checkout")


def _aside(folder: Path) -> Path:
    name = {"prefix": f".{folder.name}.", "suffix": ".part"}
    return Path(tempfile.mkdtemp(**name, dir=folder.parent))


def _open(repository: Path, commit: str) -> _Commit:
    """Read a commit, and compute its id."""
    algorithm = {40: "sha1", 64: "sha256"}.get(len(commit))
    if algorithm is None or not re.fullmatch("[0-9a-f]+", commit):
        msg = f"{commit!r} is not a commit's id in full: 40 or 64 of 0-9a-f"
        raise CheckoutError(msg)
    git_dir = repository
    if os.path.lexists(repository / ".git"):
        ask = ("rev-parse", "--git-common-dir")
        said = run_git(*ask, cwd=repository, environ=git_environ())
        git_dir = repository / os.fsdecode(said.removesuffix(b"\n"))
    environ = git_environ(GIT_DIR=str(git_dir))
    body = run_git("cat-file", "commit", commit, cwd=repository, environ=environ)
    if _oid(algorithm, b"commit", body) != commit:
        msg = f"{repository}: the commit {commit} is damaged: run `git fsck` there"
        raise CheckoutError(msg)
    tree = body[len(b"tree ") : body.index(b"\n")].decode("ascii")
    entries = {}
    whole = ("ls-tree", "-r", "-z", "--full-tree", tree)  # whatever core.worktree says
    listed = run_git(*whole, cwd=repository, environ=environ)
    for line in listed.split(b"\0")[:-1]:
        about, _, name = line.partition(b"\t")
        mode, _, oid = about.split(b" ")
        entries[os.fsdecode(name)] = _Entry(mode, oid.decode("ascii"))
    return _Commit(commit, git_dir, tree, entries, algorithm)


def _check(known: _Commit, folder: Path, index: Path, *, is_new: bool = False) -> None:
    """Compute the tree of *folder* from its bytes; it must be the commit's.

    Where it is new, what git made of a file by rules for line ends is undone first.
    """
    entries = known.entries
    found = dict(_walk(known, folder))
    files = {_REGULAR, _EXECUTABLE}
    differ = {
        path
        for path, entry in found.items()
        if path in entries
        and entry.oid != entries[path].oid
        and {entry.mode, entries[path].mode} <= files
    }
    has_rules = any(path.endswith(".gitattributes") for path in entries)
    asked = [os.fsencode(path) for path in (entries if has_rules else differ)]
    git = partial(known.run, folder=folder, index=index)
    [filters] = by_attributes(git, asked, "filter")
    if filters:
        check_filters(configuration(git), filters)
    filtered = differ & {os.fsdecode(path) for path in filters}
    same = list(_filtered(known, filtered, folder, index))
    if is_new:
        for path, data in _blobs(known, sorted(differ - filtered), folder, index):
            (folder / path).write_bytes(data)
            same.append(path)
    for path in same:
        found[path] = _Entry(found[path].mode, entries[path].oid)
    tree = _tree(known.algorithm, found)
    if tree == known.tree:
        return
    changes = {
        "changed": [p for p in found if entries.get(p, found[p]) != found[p]],
        "missing": sorted(entries.keys() - found.keys()),
        "extra": sorted(found.keys() - entries.keys()),
    }
    shown = "; ".join(
        f"{len(paths)} {what}: {', '.join(map(repr, paths[:_NUM_SHOWN]))}"
        for what, paths in changes.items()
        if paths
    )
    msg = (
        f"{folder} is not the code of commit {known.oid}: its tree is {tree}, not "
        f"{known.tree} ({shown}); remove it and make it anew"
    )
    raise CheckoutError(msg)


def _walk(known: _Commit, folder: Path) -> Iterator[tuple[str, _Entry]]:
    """Yield what git would store of each file under *folder*, filters aside."""
    for entry, path in _files(folder):
        expected = known.entries.get(path)
        if entry.is_symlink():
            target = os.readlink(os.fsencode(entry.path))  # noqa: PTH115 -- as it is
            yield path, _Entry(_LINK, _oid(known.algorithm, b"blob", target))
        elif entry.is_dir():
            # A repository within the repository, which nobody filled.
            if expected is not None and expected.mode == _GITLINK:
                yield path, expected
        else:
            status = entry.stat(follow_symlinks=False)
            mode = _EXECUTABLE if status.st_mode & stat.S_IXUSR else _REGULAR
            yield path, _Entry(mode, _blob(known.algorithm, entry.path, status.st_size))


def _files(folder: Path) -> Iterator[tuple[os.DirEntry[str], str]]:
    """Yield what lies under *folder* but folders with something in them, with its path."""
    left = [(str(folder), "")]
    while left:
        where, prefix = left.pop()
        with os.scandir(where) as entries:
            for entry in sorted(entries, key=lambda entry: os.fsencode(entry.name)):
                path = prefix + entry.name
                kind = entry.stat(follow_symlinks=False).st_mode
                if stat.S_ISDIR(kind):
                    with os.scandir(entry.path) as inner:
                        is_empty = next(inner, None) is None
                    if not is_empty:
                        left.append((entry.path, path + "/"))
                        continue
                elif not (stat.S_ISREG(kind) or stat.S_ISLNK(kind)):
                    msg = f"{entry.path} is no file, folder or link: remove it"
                    raise CheckoutError(msg)
                yield entry, path


def _filtered(
    known: _Commit, paths: Collection[str], folder: Path, index: Path
) -> Iterator[str]:
    """Yield what differs from the commit's file only as its filter makes it."""
    left = dict.fromkeys(paths)
    # One call for all, whatever their size; but a line cannot hold every name.
    lines = [path for path in left if not re.search(r'\n|^"|\r$', path)]
    if lines:
        names = b"".join(os.fsencode(path) + b"\n" for path in lines)
        args = ("hash-object", "--stdin-paths")
        oids = known.run(*args, folder=folder, index=index, stdin=names).split()
        for path, oid in zip(lines, oids, strict=True):
            if oid.decode("ascii") == known.entries[path].oid:
                del left[path]
                yield path
    for path, _ in _blobs(known, list(left), folder, index):
        asked = ("cat-file", "--filters", f"--path={path}", known.entries[path].oid)
        made = known.run(*asked, folder=folder, index=index)
        if made == (folder / path).read_bytes():
            yield path


def _blobs(
    known: _Commit, paths: Sequence[str], folder: Path, index: Path
) -> Iterator[tuple[str, bytes]]:
    """Yield what the commit stores of files, checked."""
    for start in range(0, len(paths), _NUM_BLOBS):
        some = paths[start : start + _NUM_BLOBS]
        oids = "".join(known.entries[path].oid + "\n" for path in some).encode("ascii")
        said = known.run("cat-file", "--batch", folder=folder, index=index, stdin=oids)
        stored = io.BytesIO(said)
        for path in some:
            oid = known.entries[path].oid
            size = stored.readline().split()[-1]
            data = stored.read(int(size) + 1)[:-1] if size != b"missing" else b""
            if _oid(known.algorithm, b"blob", data) != oid:
                msg = (
                    f"{path!r}: what {known.git_dir} stores of it, {oid}, is damaged or not "
                    f"there: run `git fsck` there"
                )
                raise CheckoutError(msg)
            yield path, data


def _oid(algorithm: str, kind: bytes, data: bytes) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    digest.update(b"%s %d\0" % (kind, len(data)))
    digest.update(data)
    return digest.hexdigest()


def _blob(algorithm: str, path: str, size_bytes: int) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    digest.update(b"blob %d\0" % size_bytes)
    with open(path, "rb") as file:  # noqa: PTH123 -- 10,000 files: a Path each is slow
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _tree(algorithm: str, found: Mapping[str, _Entry]) -> str:
    """Return the id of the tree that holds *found*, as git computes it."""
    folders: dict[str, list[tuple[bytes, bytes, str]]] = {"": []}
    for path, entry in found.items():
        folder, _, name = path.rpartition("/")
        folders.setdefault(folder, []).append((os.fsencode(name), entry.mode, entry.oid))
        while folder:
            folder = folder.rpartition("/")[0]
            folders.setdefault(folder, [])
    oid = ""
    # Deepest first, the root last.
    for folder in sorted(folders, key=lambda f: f.count("/") if f else -1, reverse=True):
        held = sorted(folders[folder], key=lambda e: e[0] + b"/" * (e[1] == _TREE))
        data = b"".join(b"%s %s\0%s" % (m, n, bytes.fromhex(o)) for n, m, o in held)
        oid = _oid(algorithm, b"tree", data)
        if folder:
            parent, _, name = folder.rpartition("/")
            folders[parent].append((os.fsencode(name), _TREE, oid))
    return oid


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status.

    Args:
        arguments: What follows the program's name; the process's own by default.
    """
    parser = argparse.ArgumentParser(
        prog="checkout.py", description=__doc__.split("\n")[0]
    )
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("make", "prove", "remove"):
        command = commands.add_parser(name)
        command.add_argument("--folder", type=Path, required=True)
        if name != "remove":
            command.add_argument("--repository", type=Path, required=True)
            command.add_argument("--commit", required=True)
        if name == "make":
            command.add_argument("--replace", action="store_true")
        if name == "remove":
            command.add_argument("--when", default="always")
            command.add_argument("--status", type=int, default=0)
    args = parser.parse_args(arguments)
    try:
        if args.command == "make":
            make(args.repository, args.commit, args.folder, replace=args.replace)
        elif args.command == "prove":
            prove(args.repository, args.commit, args.folder)
        else:
            remove(args.folder, when=args.when, status=args.status)
    except (CheckoutError, OSError, ValueError) as error:
        sys.stderr.write(f"checkout.py: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
