"""Trine: event-driven functions and triggers for Python on NATS with JetStream."""

from trine.app import App
from trine.client import Client
from trine.context import Context
from trine.errors import GiveUp, RetryLater, TrineError
from trine.events import EventModel
from trine.function import Function
from trine.jobs.consumers import Job
from trine.middleware import Middleware
from trine.middleware.limits import Rate
from trine.observability.observe import Completion
from trine.retry import Retry
from trine.scope import Scope
from trine.serving.worker import Worker
from trine.state import Entry, Gone, Store
from trine.transaction import Transaction
from trine.trigger import Trigger, TriggerContext

__all__ = [
    "App",
    "Client",
    "Completion",
    "Context",
    "Entry",
    "EventModel",
    "Function",
    "GiveUp",
    "Gone",
    "Job",
    "Middleware",
    "Rate",
    "Retry",
    "RetryLater",
    "Scope",
    "Store",
    "Transaction",
    "Trigger",
    "TriggerContext",
    "TrineError",
    "Worker",
]
