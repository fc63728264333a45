"""Call the function that an entry point names, with the path of a config.

Run as a script: ``_call.py <folder> <module> <function> <config>``. The folder is where the
module is looked for first: that of whoever started the search.
"""

from __future__ import annotations

import sys
from importlib import import_module
from operator import attrgetter

__all__ = ["main"]


def main(arguments: list[str]) -> None:
    """Call it; what it returns means nothing, `sys.exit` within it does.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If the module has no such function.
    """
    folder, module, function, config = arguments
    sys.path[0] = folder
    sys.argv = [function, config]
    attrgetter(function)(import_module(module))(config)


if __name__ == "__main__":
    main(sys.argv[1:])
