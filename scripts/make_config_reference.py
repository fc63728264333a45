"""Write docs/reference/config.md: every key of an experiment config, from the schema.

With ``--check`` it writes nothing, and exits 1 if the page is not up to date.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtf_config import json_schema

TARGET = Path(__file__).parents[1] / "docs" / "reference" / "config.md"

HEAD = """\
# Config reference

Every key of an experiment config, generated from the schema of `mtf-config`. A key in
**bold** must be given; every other has the default shown. Keys that are not listed are
errors, except below `model`, where keys of your own are kept. `trainer:` is another name
for `training:`.

Any value may be a placeholder: `${other.key}` or `${env:NAME}`, with a default as in
`${env:NAME:-value}`. The same schema as JSON Schema, for editors:
`python -m mtf_config schema`.
"""

LIMITS = {
    "minimum": "at least {}",
    "exclusiveMinimum": "above {}",
    "maximum": "at most {}",
    "exclusiveMaximum": "below {}",
}


def main(arguments: list[str]) -> int:
    """Write the page or, with ``--check``, compare it; return the exit code."""
    text = render()
    if arguments == ["--check"]:
        if TARGET.is_file() and TARGET.read_text("utf-8") == text:
            return 0
        print(f"{TARGET} is out of date: run python scripts/make_config_reference.py")
        return 1
    TARGET.write_text(text, "utf-8")
    return 0


def render() -> str:
    """Return the whole page."""
    schema = json_schema()
    sections = schema["$defs"]
    properties = schema["properties"]
    top: dict[str, Any] = {}
    blocks: list[str] = []
    for name, value in properties.items():
        if name in ("trainer", "defaults"):
            continue
        section = next((s for s in map(reference, value["anyOf"]) if s in sections), None)
        if section is None:
            top[name] = value
            continue
        note = sections[section]["description"].replace("``", "`")
        blocks.append(f"## `{name}`\n\n{note}\n\n{table(name, sections[section])}")
    first = f"## Top level\n\n{table('', {'properties': top})}"
    return "\n".join([HEAD, first, *blocks])


def reference(value: dict[str, Any]) -> str:
    """Return the name of the section that a schema points to, if it does."""
    return str(value.get("$ref", "")).removeprefix("#/$defs/")


def table(prefix: str, section: dict[str, Any]) -> str:
    """Return one Markdown table, a row for each key."""
    rows = ["| key | type | default | meaning |", "| --- | --- | --- | --- |"]
    for name, value in section["properties"].items():
        key = f"`{prefix}.{name}`" if prefix else f"`{name}`"
        default = f"`{json.dumps(value['default'])}`" if "default" in value else ""
        shown = key if default else f"**{key}**"
        kinds = ", or ".join(describe(value))
        meaning = value.get("description", "").replace("|", "\\|")
        rows.append(f"| {shown} | {kinds} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def describe(value: dict[str, Any]) -> Iterator[str]:
    """Yield each kind of value that a key takes, in words."""
    for kind in value["anyOf"]:
        if kind.get("type") == "null":
            yield "null"
        elif kind.get("type") == "array":
            count = kind.get("maxItems")
            inner = next(describe(kind["prefixItems"][0]))
            yield f"list of {count}: {inner}"
        elif "pattern" in kind and kind["pattern"].startswith(r"\$"):
            continue  # a placeholder, said once above
        else:
            limits = [text.format(kind[k]) for k, text in LIMITS.items() if k in kind]
            yield " ".join([kind["type"], ", ".join(limits)]).strip()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
