"""The schema for editors and other tools, as JSON Schema draft 2020-12."""

from __future__ import annotations

from typing import Any

from mtf_config.experiment import SECTION_ALIASES, ExperimentConfig

__all__ = ["json_schema"]

_PLACEHOLDER = {"type": "string", "pattern": r"\$\{[^{}]+\}"}


def json_schema() -> dict[str, Any]:
    """Return the schema of a config *file*: also ``defaults:`` and ``${...}``.

    Nothing is required in a file, since what it lacks may come from another.

    >>> schema = json_schema()
    >>> schema["$defs"]["OptimizerConfig"]["properties"]["lr"]["anyOf"][0]["type"]
    'number'
    """
    schema = ExperimentConfig.model_json_schema(mode="validation")
    for section in (schema, *schema["$defs"].values()):
        section.pop("required", None)
        section["description"] = section["description"].splitlines()[0]
        properties = section["properties"]
        for name, value in properties.items():
            properties[name] = _or_placeholder(value)
    properties = schema["properties"]
    for alias, name in SECTION_ALIASES.items():
        properties[alias] = properties[name]
    properties["defaults"] = {
        "description": "Files that this one builds on; later wins.",
        "type": "array",
        "items": {"type": ["string", "object"]},
    }
    both = [{"required": [alias, name]} for alias, name in SECTION_ALIASES.items()]
    schema["not"] = {"anyOf": both}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def _or_placeholder(value: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in value.items() if k in ("description", "default", "title")}
    rest = {key: item for key, item in value.items() if key not in kept}
    if "prefixItems" in rest:
        rest["prefixItems"] = [_or_placeholder(item) for item in rest["prefixItems"]]
    return {**kept, "anyOf": [*rest.pop("anyOf", [rest]), _PLACEHOLDER]}
