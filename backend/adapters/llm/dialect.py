"""What a model of an endpoint accepts, begun from its name and corrected by the endpoint's own refusals."""

from __future__ import annotations

import re
from dataclasses import dataclass

from backend.domain.config import OPENAI_URL

_REASONING = re.compile(r"^(o\d|gpt-5(?!-chat))")
_UNSUPPORTED = re.compile(
    r"unsupported|n[o']t support|unknown|unrecogni[sz]ed|unexpected|extra (inputs|fields)|not permitted"
)


@dataclass(slots=True)
class Dialect:
    """How the output ceiling is called, and what may be sent besides."""

    tokens: str
    temperature: bool = True
    stream_usage: bool = True
    streams: bool = True

    @classmethod
    def of(cls, model: str, base_url: str) -> Dialect:
        """Guess the dialect: OpenAI's own address and reasoning models want `max_completion_tokens`."""
        reasoning = _REASONING.match(model.rpartition("/")[2]) is not None
        modern = reasoning or base_url.startswith(OPENAI_URL)
        return cls(tokens="max_completion_tokens" if modern else "max_tokens", temperature=not reasoning)

    @property
    def modern(self) -> bool:
        """Whether the model is spoken to as OpenAI's own are."""
        return self.tokens == "max_completion_tokens"

    def learn(self, status: int | None, complaint: str) -> bool:
        """Take up what a refusal says is unsupported; True when the request is worth sending once more.

        Every lesson can be learnt once, but for the name of the ceiling: a server that refuses both names would be
        asked for ever, so the caller bounds the tries.
        """
        if status not in (400, 422) or not _UNSUPPORTED.search(complaint):
            return False
        if self.temperature and "temperature" in complaint:
            self.temperature = False
        elif self.stream_usage and "stream_options" in complaint:
            self.stream_usage = False
        elif self.streams and "stream" in complaint:
            self.streams = False
        elif self.tokens in complaint:
            self.tokens = "max_tokens" if self.modern else "max_completion_tokens"
        else:
            return False
        return True

    def metered(self, *, streamed: bool) -> None:
        """Take up that a reply named no usage: one that was streamed is asked for whole from now on."""
        self.streams = self.streams and not streamed
