"""Which names say that what they name is a secret, and must not be shown or saved."""

from __future__ import annotations

import re

__all__ = ["is_secret_name", "names_secret"]

# Names with camelCase split and dashes as underscores; digits may follow.
_SECRET = re.compile(
    r"(?:token|secrets?|password|passwd|passphrase|credentials?|apikeys?)\d*$"
    r"|(?:^|_)(?:api|private|access|secret|signing|encryption|ssh|openai)_?keys?\d*$"
    r"|_(?:pwd|pass|pat)\d*$|^database_url$"
)
_HUMP = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
# Of a vocabulary or a count, not of an account.
_NO_SECRET = re.compile(
    r"(?:^|_)(?:bos|class|cls|end|eos|image|mask|pad|per|sep|special|start|stop|unk)_token$"
)


def is_secret_name(name: str) -> bool:
    """Tell whether *name* is that of a secret.

    >>> [is_secret_name(n) for n in ("HF_TOKEN", "dbPassword", "pad_token", "TOKENIZERS")]
    [True, True, False, False]
    """
    words = _HUMP.sub("_", name).replace("-", "_").lower()
    return bool(_SECRET.search(words)) and not _NO_SECRET.search(words)


def names_secret(text: str) -> bool:
    """Tell whether any word in *text* is the name of a secret.

    >>> names_secret("+model.api_key=1"), names_secret("model.tokenizer=bpe")
    (True, False)
    """
    return any(map(is_secret_name, re.findall(r"[\w-]+", text)))
