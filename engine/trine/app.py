"""The application: what a module's decorators collect, to be served by any process."""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

from trine import wire
from trine.errors import UsageError
from trine.function import KEEP_REPLY_SECONDS, Function, FunctionDecorator
from trine.middleware import Middleware
from trine.middleware.limits import Rate
from trine.retry import Retry
from trine.trigger import Binding, Trigger

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
GROUP = "trine.apps"


class App:
    """A named set of functions and their triggers; without effect until it is served.

    *middleware* runs around each of the functions defined in it, see `trine.middleware`.
    """

    def __init__(self, name: str, *, middleware: Sequence[Middleware] = ()) -> None:
        self.name = wire.name(name, "app")
        self.middleware = tuple(middleware)
        self.functions: dict[str, Function[Any, Any]] = {}
        self.bindings: list[Binding] = []

    def function(
        self,
        id: str | None = None,
        *,
        retry: Retry | None = None,
        timeout: float | None = None,
        concurrency: int = 256,
        rate: Rate | None = None,
        priorities: bool = False,
        keep_reply: float = KEEP_REPLY_SECONDS,
        middleware: Sequence[Middleware] = (),
    ) -> FunctionDecorator:
        """Make the decorated callable a function called *id* (default: ``<app>.<its name>``).

        *retry*: see `Retry`. *timeout*: seconds for one run when the caller sets no deadline.
        *concurrency*: calls at once in one process; more are refused with 429. *rate*: see `Rate`.
        *priorities*: jobs sent with a higher priority run first. *keep_reply*: seconds for which
        the reply to an idempotency key is kept. *middleware*: runs inside that of the app.
        """

        def make(handler: Callable[..., Any]) -> Function[Any, Any]:
            function: Function[Any, Any] = Function(
                id or f"{self.name}.{handler.__name__}",
                handler,
                retry=retry,
                timeout=timeout,
                concurrency=concurrency,
                rate=rate,
                priorities=priorities,
                keep_reply=keep_reply,
                middleware=(*self.middleware, *middleware),
            )
            if function.id in self.functions:
                raise UsageError(f"function {function.id!r} is defined twice in app {self.name!r}")
            self.functions[function.id] = function
            return function

        return FunctionDecorator(make)

    def on(self, trigger: Trigger) -> Callable[[Function[I, O]], Function[I, O]]:
        """Bind *trigger* to the function below: ``@app.on`` stands above ``@app.function``."""

        def bind(function: Function[I, O]) -> Function[I, O]:
            if not isinstance(function, Function):
                raise UsageError("@app.on(...) goes above @app.function(...), not below it")
            trigger.check(function)
            self.bindings.append(Binding(trigger, function))
            return function

        return bind

    def include(self, other: "App") -> None:
        """Take over the functions and bindings of *other*: a large app is made of modules."""
        for id, function in other.functions.items():
            if id in self.functions:
                raise UsageError(f"function {id!r} is defined twice in app {self.name!r}")
            self.functions[id] = function
        self.bindings += other.bindings


def load(target: str) -> App:
    """Return the app at ``module:attribute`` or ``path/to/file.py:attribute`` (default ``app``)."""
    place, _, attribute = target.partition(":")
    if place.endswith(".py"):
        path = Path(place).resolve()
        name = f"trine_user_{path.stem}"  # a private name: user files collide with nothing
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None or not path.is_file():
            raise UsageError(f"no file {place}")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    else:
        if importlib.util.find_spec(place.split(".")[0]) is None and _beside(place).exists():
            return load(f"{_beside(place)}:{attribute or 'app'}")
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name and place.startswith(error.name):
                raise UsageError(f"no module {place!r} here or installed") from error
            raise
    app = getattr(module, attribute or "app", None)
    if not isinstance(app, App):
        raise UsageError(f"{target}: {attribute or 'app'!r} is not an App")
    return app


def _beside(module: str) -> Path:
    return Path(module.replace(".", "/") + ".py")


def installed() -> list[App]:
    """Return the apps of installed distributions (entry points ``trine.apps``)."""
    return [entry.load() for entry in sorted(entry_points(group=GROUP), key=lambda e: e.name)]
