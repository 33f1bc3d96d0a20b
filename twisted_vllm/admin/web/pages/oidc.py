"""Signing in and out at an OpenID provider.

The provider is another site. A browser sends no ``SameSite=Strict`` cookie with a request to which another site led,
also not after a redirect, so the page to which the provider sends it shows for a moment and leads on by itself: what
follows is a request of our own site. The cookie with the attempt is ``Lax``, and comes with the provider's answer.
Signing out leads on in the same way, as a redirect of a form to another site is against the content security policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from twisted_vllm.admin.responses import send
from twisted_vllm.admin.web.page import PageCall, Pages, parse_form
from twisted_vllm.admin.web.pages.sign_in import party_of, show_form, show_refusal
from twisted_vllm.admin.web.sign_in import CANNOT_SEAL
from twisted_vllm.auth.oidc.attempt import ATTEMPT_SECONDS
from twisted_vllm.auth.own_pages import HOME, own_page
from twisted_vllm.errors import GatewayError, NotFound

if TYPE_CHECKING:
    # loaded where there is a provider
    from twisted_vllm.identification.oidc.relying_party import RelyingParty

pages = Pages()

#: below which the cookies of a sign-in are sent
_PATH = "/ui/oidc"
#: what the browser keeps until the provider has answered, and until the person signs out
_ATTEMPT, _PERSON = b"vllm_console_attempt", b"vllm_console_person"


@pages.get("/ui/oidc/sign-in", open=True)
async def begin(call: PageCall) -> bytes:
    """Lead the browser to the provider."""
    wanted = own_page(call.query.get("next", ""))
    if call.context.authenticator.is_open:
        return call.redirect(HOME)
    party, sign_in = _party(call), call.console.sign_in
    if not sign_in.sealer().can_seal:
        return show_form(call, wanted, CANNOT_SEAL, 400)
    anew = call.query.get("anew") == "1"
    own = sign_in.settings().url
    if own is not None and call.origin != own and call.query.get("moved") != "1":
        # the provider sends the browser there, and cookies of this address would not come with it
        query = f"next={quote(wanted, safe='')}&moved=1{'&anew=1' if anew else ''}"
        return _redirect(call, f"{_address(call, f'{_PATH}/sign-in')}?{query}")
    try:
        begun = await party.begin(_address(call, f"{_PATH}/callback"), wanted, anew=anew)
    except GatewayError as error:
        return show_refusal(call, wanted, error)
    sign_in.add_cookie(call.request, _ATTEMPT, begun.sealed, int(ATTEMPT_SECONDS), path=_PATH, same_site=b"lax")
    return _redirect(call, begun.url)


@pages.get("/ui/oidc/callback", open=True)
async def finish(call: PageCall) -> bytes:
    """Begin the session of whom the provider names, or say why not."""
    request, sign_in = call.request, call.console.sign_in
    party, authenticator = _party(call), call.context.authenticator
    fields = parse_form(request.uri.partition(b"?")[2])
    sealed = sign_in.cookie(request, _ATTEMPT)
    # an attempt has one answer
    sign_in.add_cookie(request, _ATTEMPT, "", 0, path=_PATH, same_site=b"lax")
    try:
        found = await party.finish(fields, sealed, authenticator.client_of(request))
    except GatewayError as error:
        return show_refusal(call, HOME, error, again=True)
    caller = found.caller
    sign_in.keep(request, "user", caller.key_id, caller=caller, provider=party.mark)
    lifetime = int(sign_in.settings().session_lifetime)
    sign_in.add_cookie(request, _PERSON, found.sealed, lifetime if found.sealed else 0, path=_PATH)
    # the log names who it is
    await authenticator.principal_of(request)
    # its address has the code
    request.setHeader(b"referrer-policy", b"no-referrer")
    target = call.console.url(request, found.page)
    return call.render(
        "leads_on.html", title="Signed in", message=f"You are {caller.name}.", action="Continue", target=target
    )


@pages.get("/ui/oidc/sign-out", open=True)
async def sign_out(call: PageCall) -> bytes:
    """Lead the browser to where it signs out at the provider, once its session here is over."""
    sign_in, party = call.console.sign_in, party_of(call)
    sealed = sign_in.cookie(call.request, _PERSON)
    if sealed:
        sign_in.add_cookie(call.request, _PERSON, "", 0, path=_PATH)
    target = None
    if party is not None and sign_in.sealer().can_seal:
        target = await party.sign_out_url(sealed, _address(call, f"{_PATH}/signed-out"))
    if party is None or target is None:
        return call.redirect("/ui/sign-in", reason="signed_out")
    message = f"You have signed out here. {party.name} may ask whether you want to sign out there as well."
    return call.render(
        "leads_on.html", title="Signing out", message=message, action=f"Sign out at {party.name}", target=target
    )


@pages.get("/ui/oidc/signed-out", open=True)
async def signed_out(call: PageCall) -> bytes:
    """Take the browser back from the provider."""
    return call.redirect("/ui/sign-in", reason="signed_out")


def _party(call: PageCall) -> RelyingParty:
    party = party_of(call)
    if party is None:
        raise NotFound("Nobody signs in at a provider here: passthrough.console.oidc is not set.")
    return party


def _address(call: PageCall, path: str) -> str:
    """Return the whole URL of a page as browsers see it."""
    return (call.console.sign_in.settings().url or call.origin) + call.console.url(call.request, path)


def _redirect(call: PageCall, location: str) -> bytes:
    """Send the browser to another site."""
    headers: Any = [(b"location", location.encode("ascii"))]
    return send(call.request, 303, headers, b"")
