"""The built-in triggers, one file each; the engine finds them through their entry points."""

from trine_triggers.cron import Cron, CronTick
from trine_triggers.event import Event
from trine_triggers.http import Http
from trine_triggers.key import Key, KeyChange
from trine_triggers.queue import Queue

__all__ = ["Cron", "CronTick", "Event", "Http", "Key", "KeyChange", "Queue"]
