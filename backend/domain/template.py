"""A template: a versioned preset of run settings, as the files in `templates/` and the API write it."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from backend.domain.config import Patch, RunConfig
from backend.domain.config_faults import faults_of
from backend.domain.patch import merge
from backend.errors import Fault, Invalid

Slug = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]{0,62}$")]
_LARGEST = 256 * 1024


class Template(BaseModel):
    """One version of a preset; a version never changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    slug: Slug
    """Short name, the same over all versions: small letters, digits and hyphens."""
    version: Annotated[int, Field(ge=1, le=1_000_000)]
    """Counts from 1; a file that was changed needs the next one."""
    title: Annotated[str, Field(min_length=1, max_length=200)]
    """Shown name."""
    description: Annotated[str, Field(max_length=2000)] = ""
    """What it is for."""
    graph: Annotated[str, Field(min_length=1, max_length=200)] = "software_company"
    """Name of the graph that its runs follow."""
    config: Patch = Field(default_factory=dict)
    """What differs from the defaults of a run."""

    @property
    def patch(self) -> Patch:
        """The settings that it stands for, its graph included."""
        return {**self.config, "graph": self.graph}

    @property
    def content_hash(self) -> str:
        """The sha256 of the canonical content."""
        content = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
        return hashlib.sha256(content.encode()).hexdigest()


def parse(text: str, *, name: str = "template") -> Template:
    """Read a template from YAML (or JSON, which is YAML); raises `Invalid` with every fault and its place."""
    if len(text) > _LARGEST:
        raise Invalid(f"The template {name} is larger than {_LARGEST // 1024} kB.")
    try:
        loaded = yaml.load(text, Loader=_StrictLoader)  # noqa: S506 - a safe loader that refuses more
    except (yaml.YAMLError, RecursionError) as broken:
        raise Invalid(f"The template {name} is not YAML: {' '.join(str(broken).split())}.") from broken
    return check(loaded, name=name)


def check(content: Any, *, name: str = "template") -> Template:
    """Return a template whose settings fit; raises `Invalid` with pointers into the template."""
    if not isinstance(content, dict):
        raise Invalid(f"The template {name} must be an object with slug, version, title, graph and config.")
    try:
        template = Template.model_validate(content, strict=True)
    except ValidationError as error:
        faults = faults_of(error, Template)
        raise _invalid(name, faults) from error
    if "graph" in template.config:
        raise _invalid(name, [Fault("/config/graph", "config.graph belongs one level up, beside config.")])
    try:
        merge(template.patch)
    except Invalid as wrong:
        raise _invalid(
            name, [Fault(f"/config{fault.pointer}", f"config: {fault.message}") for fault in wrong.faults]
        ) from wrong
    return template


def settings_schema() -> dict[str, Any]:
    """Return the JSON Schema of a patch: every setting may be left out, or be null to take its default back."""
    schema = RunConfig.model_json_schema()
    _allow_null(schema)
    for section in schema.get("$defs", {}).values():
        _allow_null(section)
    return {**schema, "title": "Settings of a run", "description": "What differs from the defaults."}


def template_schema() -> dict[str, Any]:
    """Return the JSON Schema of a template file, which is published as `templates/schema.json`."""
    settings = settings_schema()
    definitions = settings.pop("$defs", {})
    schema = Template.model_json_schema()
    schema["properties"]["config"] = settings
    schema["$defs"] = definitions
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema, "title": "Template of runs"}


def _invalid(name: str, faults: list[Fault]) -> Invalid:
    listed = " ".join(fault.message for fault in faults[:5])
    return Invalid(f"The template {name} is not in order. {listed}", code="invalid_template", faults=faults)


def _allow_null(section: dict[str, Any]) -> None:
    """Let every property of a section be null, keeping what describes it beside."""
    for key, said in section.get("properties", {}).items():
        kinds = said.get("anyOf", [])
        if {"type": "null"} in kinds or key in section.get("required", ()):
            continue
        about = {word: said[word] for word in ("title", "description", "default") if word in said}
        kind = {word: value for word, value in said.items() if word not in about}
        section["properties"][key] = {**about, "anyOf": [*(kinds or [kind]), {"type": "null"}]}


class _StrictLoader(yaml.SafeLoader):
    """Refuses what is easily a mistake or an attack: a key that comes twice, and aliases."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            mark = self.peek_event().start_mark  # type: ignore[no-untyped-call] # PyYAML's types leave it out
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not allowed", problem_mark=mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value} comes twice", problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)
