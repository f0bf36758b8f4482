"""The routes of a gateway: those of the catalogue, made anew as it changes, and its own."""

from functools import cached_property
from typing import Any

import structlog

from trine import trigger as triggers
from trine import wire
from trine.catalogue import BindingInfo, FunctionInfo
from trine.catalogue.directory import Directory
from trine.errors import NotFoundError, TrineError
from trine_triggers.gateway.decode import Fields
from trine_triggers.gateway.routing import Table
from trine_triggers.http import PARAMETER, Http

log = structlog.get_logger("trine")

CALL_SECONDS = 30.0
STREAM_SECONDS = 86_400.0
LAST_EVENT_ID = "last_event_id"


class Route:
    """A route to a function, with all that is known before a request comes."""

    def __init__(self, trigger: Http, info: FunctionInfo, *, generic: bool = False) -> None:
        self.trigger = trigger
        self.info = info
        self.generic = generic  # the path says which function
        self.path = trigger.path
        self.timeout = trigger.timeout or (STREAM_SECONDS if info.streams else CALL_SECONDS)
        self.status = trigger.status
        self.cors = trigger.cors
        self.limit = trigger.max_in_flight
        self.in_flight = 0
        self.body_limit = trigger.body_limit
        self.body_field = trigger.body
        self.stream = trigger.stream
        self.where = trigger.where
        self.condition = trigger.condition
        self.admits = type(trigger).admit is not Http.admit
        found = PARAMETER.finditer(trigger.path)
        self.names = [(match[1], match[2] not in (None, "str", "path")) for match in found]
        self.from_headers = [(name.encode(), field) for name, field in trigger.headers.items()]
        self.protected = tuple(trigger.headers.values())  # nobody else may say them
        self.resumes = info.streams and LAST_EVENT_ID in self.fields.names
        if self.resumes:
            self.from_headers.append((b"last-event-id", LAST_EVENT_ID))
        self.builds = bool(self.from_headers or self.where or self.body_field)

    @cached_property
    def fields(self) -> Fields:
        """The fields of the function; read when a request first needs them."""
        return Fields(self.info.input_schema)


class Routes:
    """The table that requests are looked up in."""

    def __init__(self, directory: Directory) -> None:
        self._directory = directory
        self.own: list[tuple[str, str, Any]] = []  # method, path and target of the gateway's own
        self._made: dict[str, tuple[FunctionInfo, BindingInfo, Route]] = {}
        self._direct: dict[str, Route] = {}
        self._kinds: dict[str, bool] = {}
        self.table = Table()
        self.refused: dict[str, str] = {}  # by id of the binding: why

    def rebuild(self) -> None:
        """Make the table anew. A route that has its place keeps it; a second one is refused."""
        table, made, refused = Table(), {}, {}
        for method, path, target in self.own:
            table.add(method, path, target)
        table.add(
            "POST", "/fn/{function}", Route(_generic("/fn/x"), FunctionInfo(id="fn"), generic=True)
        )
        bindings = [
            (info, binding)
            for info in self._directory.functions.values()
            for binding in info.bindings
            if self._is_http(binding.kind)
        ]
        bindings.sort(key=lambda one: (one[1].id not in self._made, one[1].id))
        for info, binding in bindings:
            try:
                route = self._route(info, binding)
            except Exception as error:  # noqa: BLE001 - one bad binding must not stop the others
                refused[binding.id] = str(error)[:500]
                continue
            there = table.add(route.trigger.method, route.path, route)
            if there is None:
                made[binding.id] = (info, binding, route)
            else:
                owner = there.info.id if isinstance(there, Route) else "the gateway itself"
                refused[binding.id] = f"{route.trigger.method} {route.path} belongs to {owner}"
        for id, why in refused.items():
            if self.refused.get(id) != why:
                log.warning("route_refused", binding=id, error=why)
        self.table, self._made, self.refused, self._direct = table, made, refused, {}

    def _is_http(self, kind: str) -> bool:
        if kind not in self._kinds:
            try:
                self._kinds[kind] = issubclass(triggers.load(kind), Http)
            except Exception:  # noqa: BLE001 - whatever a plugin raises that cannot be loaded
                return False  # not installed here, or broken: it is no route of ours
        return self._kinds[kind]

    def _route(self, info: FunctionInfo, binding: BindingInfo) -> Route:
        known = self._made.get(binding.id)
        if known is not None and known[:2] == (info, binding):
            return known[2]  # the requests in flight are counted there
        trigger = triggers.parse(binding)
        assert isinstance(trigger, Http)
        return Route(trigger, info)

    def function(self, name: str) -> Route:
        """Return the route of ``POST /fn/<id>``; `NotFoundError` when that is no id."""
        try:
            id = wire.function_id(name)
        except TrineError as error:
            raise NotFoundError(error.message) from error
        route = self._direct.get(id)
        if route is None:
            info = self._directory.functions.get(id)
            route = Route(
                _generic(f"/fn/{id}", info.timeout if info else None), info or FunctionInfo(id=id)
            )
            if info is not None:
                self._direct[id] = route
        return route

    def listed(self) -> list[dict[str, Any]]:
        """Return the bound routes, and those that were refused with the reason."""
        taken = [
            {
                "method": route.trigger.method,
                "path": route.path,
                "function": info.id,
                "kind": binding.kind,
                "binding": binding.id,
            }
            for info, binding, route in self._made.values()
        ]
        refused = [{"binding": id, "refused": why} for id, why in self.refused.items()]
        return [*sorted(taken, key=lambda one: (one["path"], one["method"])), *refused]


def _generic(path: str, timeout: float | None = None) -> Http:
    return Http("POST", path, timeout=timeout)
