"""``python -m everwall`` is the ``everwall`` command."""

from everwall.cli.main import main

main()
