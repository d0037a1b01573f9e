"""A real HTTP server on loopback that speaks the Chat Completions protocol, for every test that needs a model.

`with OpenAIServer(script) as server:` gives `server.base_url` and `server.requests`; the script is a callable from the
request's JSON to a `Reply`, or a sequence of replies that is played in order.
"""

from tests.openai_server.playback import position_of, recorded
from tests.openai_server.replies import (
    Reply,
    cut,
    disconnect,
    empty_choices,
    endless,
    error,
    invalid_json,
    json_body,
    silent,
    text,
    tool_calls,
    wrong_schema,
)
from tests.openai_server.server import OpenAIServer, Received

__all__ = [
    "OpenAIServer",
    "Received",
    "Reply",
    "cut",
    "disconnect",
    "empty_choices",
    "endless",
    "error",
    "invalid_json",
    "json_body",
    "position_of",
    "recorded",
    "silent",
    "text",
    "tool_calls",
    "wrong_schema",
]
