"""Write YAML that `mtf_config._yaml` reads back equal, and YAML 1.1 readers alike."""

from __future__ import annotations

import re
from typing import Any

import yaml

from mtf_config._yaml import parse_scalar

__all__ = ["dump"]

_BREAK = re.compile("[\x85\u2028\u2029]")
"""Breaks a line in YAML 1.1 and, outside double quotes, is folded away."""


class _Dumper(yaml.SafeDumper):
    """Writes so that readers of YAML 1.1 and of 1.2 agree on every scalar."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - PyYAML's signature
        return True


def _represent_str(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    try:
        is_text = isinstance(parse_scalar(text), str)
    except ValueError:
        is_text = False
    style = None if is_text else "'"
    if _BREAK.search(text):
        style = '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


def _represent_float(dumper: _Dumper, number: float) -> yaml.ScalarNode:
    # 1e-05 must be written 1.0e-05 for readers of YAML 1.1.
    text = repr(number).replace("inf", ".inf").replace("nan", ".nan")
    if "e" in text and "." not in text:
        text = text.replace("e", ".0e")
    return dumper.represent_scalar("tag:yaml.org,2002:float", text)


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    is_flat = not any(isinstance(item, dict | list) for item in items)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=is_flat)


_Dumper.add_representer(str, _represent_str)
_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(float, _represent_float)


def dump(values: dict[str, Any]) -> str:
    """Return *values* as YAML, one key a line; key order is kept."""
    text = yaml.dump(
        values,
        Dumper=_Dumper,
        sort_keys=False,
        allow_unicode=True,
        default_flow_style=False,
    )
    return str(text)
