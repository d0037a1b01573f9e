"""The documentation of the API works on a machine without internet."""

from __future__ import annotations

import re

import httpx
import pytest


@pytest.mark.parametrize("page", ["/docs", "/redoc"])
async def test_the_documentation_loads_nothing_from_elsewhere(client: httpx.AsyncClient, page: str) -> None:
    shown = (await client.get(page)).text
    loaded = re.findall(r"""<script[^>]*src=["']([^"']+)|<link[^>]*stylesheet["'][^>]*href=["']([^"']+)""", shown)
    addresses = [address for pair in loaded for address in pair if address and "fonts" not in address]
    assert addresses
    for address in addresses:
        assert address.startswith("/"), address
        assert (await client.get(address)).status_code == 200
