"""The first page."""

from __future__ import annotations

from twisted_vllm.admin.web.page import PageCall, Pages

pages = Pages()


@pages.get("/ui", title="Overview")
async def show(call: PageCall) -> bytes:
    """Show where to go."""
    return call.render("welcome.html")
