"""Makes the console. It reads files and compiles templates: any thread may do it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from twisted.web.iweb import IRequest

from twisted_vllm.admin.app import ROUTES
from twisted_vllm.admin.context import AdminContext
from twisted_vllm.admin.web.all_pages import PAGES
from twisted_vllm.admin.web.assets import read_assets
from twisted_vllm.admin.web.console import Console
from twisted_vllm.admin.web.sign_in import SignIn
from twisted_vllm.admin.web.templates import make_environment


def load_console(
    *,
    context: AdminContext,
    sign_in: SignIn,
    origin_of: Callable[[IRequest], str],
    prefix_of: Callable[[IRequest], str],
    parts: Mapping[str, Any],
) -> Console:
    """Return the console; the arguments are those of `Console`."""
    return Console(
        context=context,
        routes=ROUTES,
        sign_in=sign_in,
        pages=PAGES,
        environment=make_environment(),
        assets=read_assets(),
        origin_of=origin_of,
        prefix_of=prefix_of,
        parts=parts,
    )
