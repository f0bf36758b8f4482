"""The built-in triggers, one file each; the engine finds them through their entry points."""

from trine_triggers.cron import Cron, CronTick
from trine_triggers.event import Event
from trine_triggers.http import Http
from trine_triggers.interval import Interval, IntervalTick
from trine_triggers.key import Key, KeyChange
from trine_triggers.observe import Observe
from trine_triggers.queue import Queue
from trine_triggers.upload import Upload
from trine_triggers.watch import FileChange, Watch
from trine_triggers.webhook import Webhook

__all__ = [
    "Cron",
    "CronTick",
    "Event",
    "FileChange",
    "Http",
    "Interval",
    "IntervalTick",
    "Key",
    "KeyChange",
    "Observe",
    "Queue",
    "Upload",
    "Watch",
    "Webhook",
]
