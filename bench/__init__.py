"""How fast it is on this machine. Numbers are only worth comparing with others of the same machine."""
