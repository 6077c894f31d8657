"""The lab's traffic: programs that run at both ends and remember everything that happened to them."""
