"""What a caller may wait for before it is refused."""

from __future__ import annotations

import re
from collections.abc import Mapping

from twisted.internet.defer import Deferred

from twisted_vllm.auth.authenticator import hash_key
from twisted_vllm.auth.credentials import credential_of
from twisted_vllm.errors import BlockedApiKey, GatewayError, MissingApiKey
from twisted_vllm.identification.inquiry import Inquiry

#: the form of every key that the gateway gives or takes
_KEY = re.compile(r"sk-[!-~]{13,509}")


class Identifier:
    """Finds out more about callers who are about to be refused."""

    def __init__(self, inquiry: Inquiry) -> None:
        """Make it.

        Args:
            inquiry: asks the database for the latest keys.
        """
        self._inquiry = inquiry

    def before_refusal(
        self, headers: Mapping[bytes, bytes], error: GatewayError, address: str
    ) -> Deferred[None] | None:
        """Begin to find out whether a caller is to be refused.

        Args:
            headers: the first value of each header, by lower-case name.
            error: what the authenticator raised.
            address: the client's address.

        Returns:
            A Deferred that fires, and never fails, when the caller should be authenticated once more, for good; None
            if there is nothing to find out.
        """
        credential = credential_of(headers)
        if credential is None or not isinstance(error, MissingApiKey) or _KEY.fullmatch(credential) is None:
            return None
        # A blocked key is not remembered: it may be used the moment after it was unblocked elsewhere.
        return self._inquiry.ask(None if type(error) is BlockedApiKey else hash_key(credential), address)
