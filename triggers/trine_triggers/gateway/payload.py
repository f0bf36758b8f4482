"""The payload of a request: the body as it came where it can be, else what its parts make."""

from collections.abc import AsyncGenerator
from typing import Any

from trine.client import Client
from trine.errors import ConditionNotMetError
from trine_triggers.gateway import body, decode, uploads
from trine_triggers.gateway.options import GatewayOptions
from trine_triggers.gateway.request import Request
from trine_triggers.gateway.routes import Route
from trine_triggers.gateway.watch import Watch
from trine_triggers.where import matches

_FORMS = (b"multipart/form-data", b"application/x-www-form-urlencoded")
_MULTIPART = _FORMS[0]


async def build(
    client: Client,
    options: GatewayOptions,
    route: Route,
    values: tuple[Any, ...],
    request: Request,
    watch: Watch,
) -> bytes:
    """Return what the function gets, as JSON.

    A field that the path or a header of the route sets is theirs alone; the query wins over the
    body. Raises what makes the request a bad one: 401, 408, 413 or 422.
    """
    limit = options.body_limit if route.body_limit is None else route.body_limit
    kind = request.headers.get(b"content-type", b"").lower()
    form = kind.startswith(_FORMS)
    raw = b""
    if body.expected(request.headers) and (route.admits or not kind.startswith(_MULTIPART)):
        raw = await body.read(request.receive, request.headers, limit)
    if route.admits:
        named = {
            name.decode("latin-1"): text.decode("latin-1") for name, text in request.headers.items()
        }
        await route.trigger.admit(client, named, raw)
    query = request.scope["query_string"]
    if not (values or query or form or route.builds):
        return raw or b"{}"
    if form:
        watch.close()  # files may take their time: their silence is what counts
        payload = await _form(client, options, route, kind, raw, request, limit)
    elif route.body_field is not None:
        payload = {route.body_field: decode.json_value(raw)} if raw else {}
    else:
        payload = decode.json_object(raw)
    if query:
        payload.update(decode.pairs(query, "query", route.fields))
    for name in route.protected:
        payload.pop(name, None)
    if route.from_headers:
        payload.update(decode.from_headers(request.headers, route.from_headers, route.fields))
    for (name, typed), value in zip(route.names, values, strict=True):
        payload[name] = value if typed else route.fields.value(name, [value])
    if route.where and not matches(route.where, payload):
        raise ConditionNotMetError("the payload does not meet the condition of the route")
    return decode.encode(payload)


async def _form(
    client: Client,
    options: GatewayOptions,
    route: Route,
    kind: bytes,
    raw: bytes,
    request: Request,
    limit: int,
) -> dict[str, Any]:
    if not kind.startswith(_MULTIPART):
        if raw.lstrip()[:1] in (b"{", b"["):  # `curl -d` says form, whatever it sends
            return decode.json_object(raw)
        return decode.pairs(raw, "form", route.fields)
    whole = limit + options.upload_limit
    content = (
        _once(raw)
        if route.admits
        else body.pieces(request.receive, request.headers, whole, options.body_seconds)
    )
    return await uploads.read_form(
        client.objects,
        request.text(b"content-type"),
        content,
        route.fields,
        text_limit=limit,
        file_limit=options.upload_limit,
    )


async def _once(raw: bytes) -> AsyncGenerator[bytes, None]:
    yield raw
