"""The parts of ``bench/dataplane.py``: network, generator, contenders, the node under test."""
