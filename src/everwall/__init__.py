"""Everwall: a session-resilient stateful firewall cluster for gateway load balancers."""

__version__ = "0.1.0"
