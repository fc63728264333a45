"""Every link and every block of code in the Markdown files."""

import ast
import re
import shlex
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

SHELL = {"bash", "console", "sh"}
# Run elsewhere or shown only: `text` is output, the others are read by their own tools.
LANGUAGES = SHELL | {"python", "yaml", "text", "toml", "json"}
LANGUAGES |= {"{toctree}", "{eval-rst}"}
PLACE = re.compile(r"#\s*(?P<path>[\w./-]+\.ya?ml)\n")


def tokens(document: Path) -> Iterator[Token]:
    """Yield the blocks of *document*, and what stands inside its lines."""
    for token in MarkdownIt().enable("table").parse(document.read_text("utf-8")):
        yield token
        yield from token.children or ()


def anchors(document: Path) -> set[str]:
    """Return the anchors of the headings of *document*, as hosting sites make them."""
    parsed = MarkdownIt().parse(document.read_text("utf-8"))
    starts = (i for i, token in enumerate(parsed) if token.type == "heading_open")
    headings = (parsed[i + 1].content.lower() for i in starts)
    return {re.sub(r"[^\w -]", "", text).replace(" ", "-") for text in headings}


def blocks(document: Path, languages: set[str]) -> Iterator[str]:
    """Yield the code of the fenced blocks of *document* in one of *languages*."""
    for token in tokens(document):
        if token.type == "fence" and token.info.strip() in languages:
            yield token.content


def test_links_lead_somewhere(document: Path) -> None:
    """A relative link or picture names a file that is there, and a heading in it."""
    broken = []
    for token in tokens(document):
        target = str(token.attrGet("href") or token.attrGet("src") or "")
        if not target or re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (document.parent / name) if name else document
        if not path.exists() or (anchor and anchor not in anchors(path)):
            broken.append(target)
    assert not broken


def test_blocks_name_a_known_language(document: Path) -> None:
    """Every fenced block says what it is, so that none escapes these checks."""
    infos = {
        t.info.strip().partition(" ")[0] for t in tokens(document) if t.type == "fence"
    }
    assert not infos - LANGUAGES
    assert not [t for t in tokens(document) if t.type == "code_block"]


def test_yaml_blocks_are_yaml(document: Path) -> None:
    """A block of YAML can be read."""
    for block in blocks(document, {"yaml"}):
        yaml.safe_load(block)


def test_python_blocks_run(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The Python of a document runs from top to bottom and prints what it says.

    It runs in a folder that holds the document's YAML blocks whose first line is a
    comment with a file name.
    """
    for block in blocks(document, {"yaml"}):
        if place := PLACE.match(block):
            (tmp_path / place["path"]).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / place["path"]).write_text(block, "utf-8")
    monkeypatch.chdir(tmp_path)
    sybil = Sybil(
        parsers=[PythonCodeBlockParser(), SkipParser()], path=str(document.parent)
    )
    for example in sybil.parse(document):
        example.evaluate()


def is_session(root: Path, name: str) -> bool:
    """Tell whether nox knows the session *name*, such as `tests-3.11(mtf-config)`."""
    defined = ast.parse((root / "noxfile.py").read_text("utf-8")).body
    known = {
        f.name for f in defined if isinstance(f, ast.FunctionDef) and f.decorator_list
    }
    match = re.fullmatch(r"(\w+)(-3\.\d+)?(\(([\w-]+)\))?", name)
    if match is None:
        return False
    return match[1] in known and (root / "packages" / (match[4] or "")).is_dir()


def complaint(root: Path, words: list[str]) -> str | None:
    """Return what is wrong with a shell command that a document shows, if anything."""
    makefile = (root / "Makefile").read_text("utf-8")
    packages = {path.parent.name for path in root.glob("packages/*/pyproject.toml")}
    match words:
        case ["make", target, *_]:
            unknown = {target} - set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
        case [".venv/bin/nox", "-s", *options]:
            names = takewhile(lambda word: not word.startswith("-"), options)
            unknown = {name for name in names if not is_session(root, name)}
        case ["python", "-m", module, *_]:
            unknown = set() if find_spec(module) else {module}
        case ["python", *arguments]:
            files = {word for word in arguments if re.search(r"\.(py|yaml)$", word)}
            unknown = {name for name in files if not (root / name).is_file()}
        case ["pip", "install", *names]:
            plain = {name.partition("[")[0] for name in names if name[0] != "-"}
            unknown = {name for name in plain - packages if not (root / name).is_dir()}
        case [".venv/bin/nox", "-l"] | ["git" | "cd" | "export", *_]:
            unknown = set()
        case _:
            return "a command that this test knows nothing about"
    return f"there is no {', '.join(sorted(unknown))}" if unknown else None


def commands(block: str) -> Iterator[list[str]]:
    """Yield the words of each command of a shell block.

    Where some lines start with a prompt the others are output. Variables set before a
    command, and comments, are left out.
    """
    lines = block.replace("\\\n", " ").splitlines()
    typed = [line[2:] for line in lines if line.startswith("$ ")]
    for line in typed or lines:
        words = shlex.split(line, comments=True)
        while words and re.match(r"[A-Z_]+=", words[0]):
            words.pop(0)
        if words:
            yield words


def test_shell_blocks_name_what_exists(root: Path, document: Path) -> None:
    """A shell block's make targets, nox sessions, files and packages are there."""
    shown = (words for block in blocks(document, SHELL) for words in commands(block))
    complaints = {shlex.join(words): complaint(root, words) for words in shown}
    assert not {line: text for line, text in complaints.items() if text}
