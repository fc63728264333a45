"""Which names say that what they name is a secret, and must not be shown or saved."""

from __future__ import annotations

import re

__all__ = ["SECRET_NAME", "names_secret"]

SECRET_NAME = re.compile(
    r"(?i)(?:^|_)(?:token|secrets?|passw(?:or)?d|passphrase|credentials?"
    r"|(?:api|private|access|secret)_?key)(?:_|$)"
)


def names_secret(text: str) -> bool:
    """Tell whether any word in *text* is the name of a secret.

    >>> names_secret("+model.api_key=1"), names_secret("model.tokenizer=bpe")
    (True, False)
    """
    return any(map(SECRET_NAME.search, re.findall(r"\w+", text)))
