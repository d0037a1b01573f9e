"""Template files: strict YAML, settings that fit, a schema that is current."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
import yaml

from backend.domain.config import RunConfig, SecurityGate
from backend.domain.model_choice import model_of
from backend.domain.patch import merge
from backend.domain.role import Role
from backend.domain.template import Template, check, parse, settings_schema, template_schema
from backend.errors import Invalid
from backend.operations.templates import built_ins

GOOD = {"slug": "mine", "version": 1, "title": "Mine", "config": {"parallelism": 3}}


def built_in(slug: str) -> RunConfig:
    return merge(next(template for template in built_ins() if template.slug == slug).patch)


def test_five_templates_ship_and_all_fit() -> None:
    assert [(template.slug, template.version) for template in built_ins()] == [
        ("lean", 1),
        ("local", 1),
        ("regulated", 1),
        ("showcase", 1),
        ("showcase", 2),
        ("standard", 1),
    ]


def test_the_standard_template_gives_each_role_the_model_that_was_asked_for() -> None:
    config = built_in("standard")
    small, large = "gpt-4o-mini", "gpt-4o"
    wanted = {
        "pm": large,
        "lead": large,
        "developer": small,
        "qa": small,
        "docs": small,
        "devops": large,
        "security": large,
    }
    assert {role.value: model_of(config, role)[1] for role in Role} == wanted


def test_the_lean_template_has_three_seats_and_a_small_budget() -> None:
    config = built_in("lean")
    assert {role for role in Role if config.role(role).enabled} == {Role.PM, Role.DEVELOPER, Role.QA}
    assert config.budget.usd is not None
    assert config.budget.usd < 1


def test_the_regulated_template_asks_people_and_blocks_high_findings() -> None:
    config = built_in("regulated")
    assert config.people.approve_plan
    assert config.people.approve_release
    assert config.security.gate is SecurityGate.BLOCK_HIGH
    assert config.checks.coverage_floor == 80


def test_the_showcase_template_replays() -> None:
    config = built_in("showcase")
    assert config.models.providers[config.models.provider].kind == "replay"


def test_the_published_schema_is_current() -> None:
    published = json.loads(resources.files("templates").joinpath("schema.json").read_text("utf-8"))
    assert published == template_schema(), (
        "Write it anew: python -c 'import json; from backend.domain.template import template_schema; "
        "print(json.dumps(template_schema(), indent=2, ensure_ascii=False))' > templates/schema.json"
    )


def test_the_schema_accepts_what_ships_and_nulls_and_refuses_what_is_wrong() -> None:
    schema = template_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    for template in built_ins():
        jsonschema.validate(template.model_dump(mode="json"), schema)
    jsonschema.validate({"budget": {"usd": None}, "models": None}, settings_schema())
    for wrong in ({"budgt": {}}, {"parallelism": 0}, {"budget": {"seconds": "1h"}}, {"security": {"gate": "x"}}):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(wrong, settings_schema())


def test_a_template_reads_from_yaml_and_from_json() -> None:
    assert parse(json.dumps(GOOD)) == parse(yaml.safe_dump(GOOD)) == check(GOOD)


def test_the_hash_follows_the_content_and_not_its_order() -> None:
    turned = Template.model_validate(dict(reversed(GOOD.items())))
    assert turned.content_hash == check(GOOD).content_hash
    assert check(GOOD | {"title": "Other"}).content_hash != check(GOOD).content_hash


@pytest.mark.parametrize(
    ("changed", "pointer", "message"),
    [
        ({"slug": "No Spaces"}, "/slug", "slug"),
        ({"version": 0}, "/version", "must be at least 1"),
        ({"version": "1"}, "/version", "must be a whole number"),
        ({"verison": 2}, "/verison", "did you mean version?"),
        ({"config": {"budget": {"usd": 0}}}, "/config/budget/usd", "must be more than 0"),
        ({"config": {"roles": {"cook": {}}}}, "/config/roles/cook", "must be one of"),
        ({"config": {"graph": "x"}}, "/config/graph", "one level up"),
        ({"config": [1]}, "/config", "must be an object"),
    ],
)
def test_a_template_that_is_not_in_order_is_refused_with_pointers(
    changed: dict[str, Any], pointer: str, message: str
) -> None:
    with pytest.raises(Invalid) as caught:
        check(GOOD | changed)
    assert message in {fault.pointer: fault.message for fault in caught.value.faults}[pointer]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be an object"),
        ("- 1", "must be an object"),
        ("slug: [", "is not YAML"),
        ("slug: a\nslug: b", "comes twice"),
        ("a: &x 1\nb: *x", "aliases"),
        ("a: !!python/object/apply:os.system [id]", "is not YAML"),
        ("[" * 5000, "is not YAML"),
        ("\x00", "is not YAML"),
        ("x" * 300_000, "larger than"),
    ],
)
def test_text_that_is_no_template_is_refused(text: str, message: str) -> None:
    with pytest.raises(Invalid, match=message):
        parse(text)
