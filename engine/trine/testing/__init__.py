"""For tests, ours and yours: a real server, an app served on it, and the suite for triggers."""

from trine.testing.conformance import TriggerConformance
from trine.testing.serving import server, serving

__all__ = ["TriggerConformance", "server", "serving"]
