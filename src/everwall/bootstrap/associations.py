"""``aws-gwlb-associate-vpce:<endpoint>@ethernet1/1.<n>``: which subinterface an endpoint's traffic is on.

There are no subinterfaces here: the words only carry from an endpoint to the zone that the policy gives the
subinterface. ``bootstrap.xml`` has the subinterface among its zones' interfaces; a YAML policy names it there too.
"""

from __future__ import annotations

import re
from typing import NamedTuple

KEY = "plugin-op-commands"
EXPECTED = "aws-gwlb-associate-vpce:vpce-0123456789abcdef0@ethernet1/1.10, a subinterface from 1 to 9999"
SUBINTERFACE_MAX = 9999


class Association(NamedTuple):
    """An endpoint and where its traffic is."""

    endpoint: int
    """The 64-bit number that GENEVE carries."""
    interface: str
    """``ethernet1/1``, or with a subinterface ``ethernet1/1.10``."""
    file: str = ""
    line: int | None = None
    """Where it is written, for messages."""

    @property
    def place(self) -> str:
        """The same in one word."""
        return f"{self.file}:{self.line}" if self.line else self.file

    @property
    def vpce(self) -> str:
        """The endpoint as AWS prints it."""
        return f"vpce-{self.endpoint:017x}"


def parse_association(argument: str) -> tuple[int, str] | None:
    """Endpoint and interface of what stands behind the colon, or None."""
    vpce, _, interface = argument.partition("@")
    # AWS writes 17 digits, of which the first is 0: the number has 64 bits.
    if re.fullmatch(r"vpce-0?[0-9a-f]{16}", vpce) is None:
        return None
    found = re.fullmatch(r"ethernet[0-9]{1,2}/[0-9]{1,2}(?:\.([1-9][0-9]{0,4}))?", interface)
    if found is None or int(found[1] or 1) > SUBINTERFACE_MAX:
        return None
    return int(vpce[5:], 16), interface
