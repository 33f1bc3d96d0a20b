"""Escapes in the keys of a JSON body, which hide a key from a search for its bytes."""

from __future__ import annotations

import re

#: An escaped letter or underscore: no key that is searched for as bytes has other characters. It may also stand in a
#: text; the body is then read whole for nothing.
ESCAPED_LETTER = re.compile(rb"\\u00(?:[67]|5[fF])")
