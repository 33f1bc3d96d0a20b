"""The page to sign in, signing out, and tickets for scripts."""

from __future__ import annotations

from typing import Any

import msgspec

from twisted_vllm.admin.authorization import token_of
from twisted_vllm.admin.context import AdminCall
from twisted_vllm.admin.responses import send_json
from twisted_vllm.admin.web.console import own_path
from twisted_vllm.admin.web.page import PageCall, Pages
from twisted_vllm.admin.web.sign_in import CANNOT_SEAL
from twisted_vllm.auth.records import HASH_PREFIX_LENGTH
from twisted_vllm.auth.sessions import TICKET_SECONDS, Session
from twisted_vllm.errors import GatewayError, RouteNotAllowed
from twisted_vllm.storage.transaction import Transaction

pages = Pages()

#: why somebody who was signed in must sign in again
_REASONS = {
    "invalid_api_key": "Your session is over: its key was deleted or replaced.",
    "expired_api_key": "Your session is over: its key has expired.",
    "blocked_api_key": "Your session is over: its key was blocked. Ask an administrator.",
    "signed_out": "You have signed out.",
}


@pages.get("/ui/sign-in", open=True)
async def show(call: PageCall) -> bytes:
    """Show the form."""
    if call.context.authenticator.is_open:
        return call.redirect("/ui")
    problem = "" if call.console.sign_in.sealer().can_seal else CANNOT_SEAL
    reason = _REASONS.get(call.query.get("reason", ""), "")
    return call.render("sign_in.html", next=own_path(call.query.get("next", "")), problem=problem, reason=reason)


@pages.post("/ui/sign-in", open=True)
async def sign_in(call: PageCall) -> bytes:
    """Begin a session, or say why not."""
    form = await call.form()
    wanted = own_path(form.get("next", [""])[0])
    try:
        await call.console.sign_in.begin(call.request, form.get("key", [""])[0].strip())
    except GatewayError as error:
        return call.render("sign_in.html", status=error.status, next=wanted, problem=error.message, reason="")
    return call.redirect(wanted)


@pages.post("/ui/sign-out")
async def sign_out(call: PageCall) -> bytes:
    """End the session."""
    call.console.sign_in.end(call.request)
    return call.redirect("/ui/sign-in", reason="signed_out")


@pages.post("/ui/ticket")
async def ticket(call: PageCall) -> bytes:
    """Give a script of a page a credential for vLLM's routes: the caller's own, or that of one of its keys.

    The form's ``key`` is the hash of the key; without it the ticket acts as the session does.
    """
    form = await call.form()
    wanted = form.get("key", [""])[0]
    session, sign_in = call.session, call.console.sign_in
    if session is None:
        # open mode: every request is an administrator's
        return send_json(call.request, {"ticket": "", "expires_in": TICKET_SECONDS})
    if wanted:
        # whoever may not see a key gets no ticket of it
        info = (await call.get("/key/info", key=wanted))["info"]
        if not _is_own(call, session, info):
            await _act_for_another(call, info)
        session = msgspec.structs.replace(session, kind="key", token=token_of(info["token"]), caller=None, id_hint="")
    made = sign_in.sealer().ticket(session, sign_in.now())
    return send_json(call.request, {"ticket": made, "expires_in": TICKET_SECONDS})


def _is_own(call: PageCall, session: Session, info: dict[str, Any]) -> bool:
    user_id = call.principal.user_id
    return info["token"] == session.token or (user_id is not None and info["user_id"] == user_id)


async def _act_for_another(call: PageCall, info: dict[str, Any]) -> None:
    """Let an administrator act as somebody else's key, which the audit log tells.

    Viewers and administrators of teams see keys of others too, and may not use them.

    Raises:
        RouteNotAllowed: the caller is no administrator.
    """
    if not call.principal.may_administer:
        raise RouteNotAllowed("This key belongs to somebody else. Choose one of your own.")
    admin = AdminCall(call.request, call.context, call.principal, "console/ticket", {}, {})
    prefix, seconds = info["token"][:HASH_PREFIX_LENGTH], TICKET_SECONDS

    def work(transaction: Transaction) -> None:
        admin.audit.record(transaction, "key", prefix, None, {"acts_as_key_seconds": seconds})

    await admin.change(work)
