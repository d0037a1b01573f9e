"""Hostile input on every route: an answer below 500, and nothing that was sent comes back in an error."""

from __future__ import annotations

import json
from typing import Any
from uuid import uuid4

import httpx
from fastapi import FastAPI

from tests.integration.api.conftest import Post

SECRET = "sk-canary-5f2a9c"
HUGE = "9" * 5_000
RAW = [
    b"",
    b"null",
    b"[]",
    b"true",
    b"{",
    b"\xff\xfe",
    b'{"a": "\\ud800"}',
    b'{"\\ud800": 1}',
    b'{"a": NaN}',
    b'{"a": 1e999}',
    b'{"a": ' + HUGE.encode() + b"}",
    b"[" * 50_000,
    b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ("\x00" * 100).encode(),
]
VALUES: list[Any] = [
    None, True, -1, 0, 2**31, 2**63, 2**200, 1e308, "", "\x00", "a\x00b", "\u202e", "🚀" * 500, SECRET, "x" * 300_000,
    [], [[]], [None] * 500, {}, {"a": {"b": [1, {"c": "\x00"}]}}, {"\x00": 1}, {"a": SECRET},
    "0199a1b2-0000-7000-8000-000000000001", "9999-12-31T23:59:59.999999+14:00", "0001-01-01T00:00:00Z",
]  # fmt: skip


def fields_of(schema: dict[str, Any], body: dict[str, Any]) -> list[str]:
    reference = body.get("$ref") or next((part["$ref"] for part in body.get("anyOf", []) if "$ref" in part), "")
    name = reference.rpartition("/")[2]
    return list(schema["components"]["schemas"].get(name, {}).get("properties", {}))


async def test_no_body_makes_the_api_fail_and_no_secret_comes_back(
    app: FastAPI, client: httpx.AsyncClient, new_run: Post
) -> None:
    run = await new_run()
    ids = {"run_id": run["id"], "project_id": run["project_id"], "slug": "standard", "version": "1"}
    schema = app.openapi()
    tried = 0
    for path, operations in schema["paths"].items():
        for method in {"post", "patch"} & set(operations):
            names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
            url = path.format(**{name: ids.get(name, str(uuid4())) for name in names})
            body = (
                operations[method]
                .get("requestBody", {})
                .get("content", {})
                .get("application/json", {})
                .get("schema", {})
            )
            fields = fields_of(schema, body)
            bodies = [*RAW, *(json.dumps(value).encode() for value in VALUES)]
            good = {
                "name": "n",
                "brief": "b",
                "title": "t",
                "body": "b",
                "slug": "s",
                "run_id": run["id"],
                "answer": "a",
            }
            usual = {name: good[name] for name in fields if name in good}
            bodies += [json.dumps(usual | {name: value}).encode() for name in fields for value in VALUES]
            for content in bodies:
                answer = await client.request(
                    method, url, content=content, headers={"Content-Type": "application/json", "If-Match": '"1"'}
                )
                assert answer.status_code < 500, (method, url, content[:200], answer.text[:300])
                if answer.status_code >= 400:
                    assert answer.headers["content-type"] == "application/problem+json", (url, answer.text)
                    assert SECRET not in answer.text or SECRET.encode() not in content, (url, answer.text)
                tried += 1
    assert tried > 1_000


async def test_no_query_or_header_makes_the_api_fail(app: FastAPI, client: httpx.AsyncClient, new_run: Post) -> None:
    run = await new_run()
    values = ["%00", "%ff", "a%00b", HUGE[:3000], "-1", "1e9", "%F0%9F%9A%80", "' OR 1=1 --", "..%2f..%2f", "", "[]"]
    for path, operations in app.openapi()["paths"].items():
        if "get" not in operations or path.endswith("/events"):
            continue
        names = [part[1:-1] for part in path.split("/") if part.startswith("{")]
        url = path.format(**{name: run["id"] if name == "run_id" else str(uuid4()) for name in names})
        queries = [p["name"] for p in operations["get"].get("parameters", []) if p["in"] == "query"]
        for value in values:
            for name in queries:
                assert (await client.get(f"{url}?{name}={value}")).status_code < 500, (url, name, value)
            for name in names:
                odd = path.format(**{other: value or "x" if other == name else run["id"] for other in names})
                assert (await client.get(odd)).status_code < 500, odd
    for header in ("If-Match", "Idempotency-Key", "X-Request-ID", "X-Actor", "Last-Event-ID", "Content-Length"):
        for text in (b"\xff\xfe", b"x" * 5_000, b"", b'"', b"-5", HUGE.encode()):
            answer = await client.post(f"/api/runs/{run['id']}/pause", headers=[(header.encode(), text)], content=b"")
            assert answer.status_code < 500, (header, text[:20], answer.text[:200])


async def test_a_body_over_a_mebibyte_is_refused_whether_announced_or_not(client: httpx.AsyncClient) -> None:
    async def chunks() -> Any:
        for _ in range(40):
            yield b"x" * 65_536

    announced = await client.post("/api/projects", content=b"x" * 1_048_577)
    streamed = await client.post("/api/projects", content=chunks(), headers={"Content-Type": "application/json"})
    assert (announced.status_code, streamed.status_code) == (413, 413)
    assert streamed.headers["content-type"] == "application/problem+json"


async def test_every_operation_is_documented_with_summary_examples_and_errors(app: FastAPI) -> None:
    schema = app.openapi()
    missing = []
    for path, operations in schema["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            if not operation.get("summary") or not operation.get("description"):
                missing.append(f"{where}: summary or description")
            takes_input = operation.get("parameters") or operation.get("requestBody")
            if takes_input and "422" not in operation["responses"]:
                missing.append(f"{where}: 422")
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
            if body and "example" not in json.dumps(_resolved(schema, body)):
                missing.append(f"{where}: example")
            for status, response in operation["responses"].items():
                if status[0] in "45" and "application/problem+json" not in response.get("content", {}):
                    missing.append(f"{where}: {status} is no problem")
    assert missing == []
    assert "Problem" in schema["components"]["schemas"]


def _resolved(schema: dict[str, Any], node: Any) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            return _resolved(schema, schema["components"]["schemas"][node["$ref"].rpartition("/")[2]])
        return {key: _resolved(schema, value) for key, value in node.items()}
    return [_resolved(schema, item) for item in node] if isinstance(node, list) else node
