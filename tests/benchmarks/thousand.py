"""A thousand functions with a thousand bindings: start, memory, and how soon a change is seen."""

import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from tests.benchmarks.row import Row

ROUNDS = 3
APP = """
from pydantic import BaseModel
from trine import App
from trine_triggers import Cron, Event, Http, Key

class Item(BaseModel):
    name: str
    size: int = 1

app = App("many")

def make(number):
    if number % 10 < 7:
        trigger = Http("POST", f"/many/{number}")
    elif number % 10 == 7:
        trigger = Event(f"many.e{number}")
    elif number % 10 == 8:
        trigger = Cron("0 0 * * * *", payload={"name": "clock"})
    else:
        trigger = Key("many", f"k{number}")

    @app.on(trigger)
    @app.function(f"many.f{number}")
    async def handle(item: Item) -> Item:
        return item

for number in range(1000):
    make(number)
"""
ONE_MORE = """
from trine import App
from trine_triggers import Http

app = App("more")

@app.on(Http("POST", "/more"))
@app.function("more.one")
async def one() -> str:
    return "there"
"""


def post(url: str) -> bytes:
    request = urllib.request.Request(url, data=b'{"name": "x"}', method="POST")
    with urllib.request.urlopen(request) as answer:
        return bytes(answer.read())


def memory(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))


def once() -> tuple[float, float, float]:
    """Return seconds to the first answer, MiB of the engine, seconds until a new route answers."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        (place / "many.py").write_text(APP)
        (place / "more.py").write_text(ONE_MORE)
        trine = [sys.executable, "-m", "trine"]
        quiet = {"cwd": place, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        started = time.perf_counter()
        up = [*trine, "up", "many.py:app", "--json", "--port", "0", "--workers", "0"]
        with subprocess.Popen(up, **quiet) as program:  # type: ignore[call-overload]
            url = json.loads(program.stdout.readline())["http"][0]
            post(f"{url}/many/0")
            ready = time.perf_counter() - started
            used = memory(program.pid)
            with subprocess.Popen([*trine, "serve", "more.py:app", "--json"], **quiet) as more:  # type: ignore[call-overload]
                more.stdout.readline()  # it is announced
                announced = time.perf_counter()
                while True:
                    try:
                        post(f"{url}/more")
                        break
                    except urllib.error.HTTPError:
                        time.sleep(0.01)
                visible = time.perf_counter() - announced
                more.terminate()
            program.terminate()
    return ready, used, visible


def rows() -> list[Row]:
    rounds = [once() for _ in range(ROUNDS)]
    ready, used, visible = (statistics.median(column) for column in zip(*rounds, strict=True))
    name = "1,000 functions and bindings"
    return [
        Row(f"{name}: up", ready, "s", None, None, "<= 3 s", ready <= 3),
        Row(f"{name}: memory", used, "MiB", None, None, "<= 250", used <= 250),
        Row(f"{name}: a change is visible", visible, "s", None, None, "<= 1 s", visible <= 1),
    ]
