"""What a type checker knows about functions and clients. Checked, never run."""

from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, assert_type

from pydantic import BaseModel

from trine import App, Client, Context, Entry, Function, Gone, Job, Scope, Store


class Order(BaseModel):
    n: int


class Receipt(BaseModel):
    total: float


app = App("shop")
receipts = Scope("receipts", Receipt)


@app.function("shop.order")
async def order(ctx: Context, order: Order) -> Receipt:
    return Receipt(total=order.n)


@app.function()
async def without_context(order: Order) -> Receipt:
    return Receipt(total=order.n)


@app.function()
async def nothing(ctx: Context) -> int:
    return 1


@app.function()
async def fields(ctx: Context, n: int, *, note: str = "") -> str:
    return note * n


@app.function()
def sync(order: Order) -> Receipt:
    return Receipt(total=order.n)


@app.function()
async def follow(ctx: Context, order: Order) -> AsyncIterator[Receipt]:
    yield Receipt(total=order.n)


async def calls(client: Client) -> None:
    assert_type(order, Function[Order, Receipt])
    assert_type(without_context, Function[Order, Receipt])
    assert_type(nothing, Function[None, int])
    assert_type(follow, Function[Order, Receipt])
    assert_type(await client.call(order, Order(n=1)), Receipt)
    assert_type(await client.call(order, {"n": 1}), Receipt)
    assert_type(await client.call(without_context, Order(n=1)), Receipt)
    assert_type(await client.call(nothing), int)
    assert_type(await client.call(fields, {"n": 1}), str)
    assert_type(await client.call(sync, Order(n=1)), Receipt)
    assert_type(await client.call("shop.order", {"n": 1}), Any)
    assert_type(await client.call("shop.order", {"n": 1}, returns=Receipt), Receipt)


async def wrong(client: Client) -> None:
    await client.call(order, Receipt(total=1))  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
    await client.send(order, 3)  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]


async def jobs_and_streams(client: Client) -> None:
    job = await client.send(order, Order(n=1))
    assert_type(job, Job[Receipt])
    assert_type(await job.result(), Receipt)
    assert_type(await client.send("shop.order", {}), Job[Any])
    assert_type(client.stream(follow, Order(n=1)), AsyncGenerator[Receipt, None])
    async for item in client.stream(follow, Order(n=1)):
        assert_type(item, Receipt)


async def state(client: Client, ctx: Context) -> None:
    store = client.state(receipts)
    assert_type(store, Store[Receipt])
    assert_type(await store.get("k"), Entry[Receipt])
    assert_type(await store.find("k"), Entry[Receipt] | None)
    assert_type(await store.entries(), list[Entry[Receipt]])
    assert_type(await store.change("k", Receipt(total=0), lambda r: r), Receipt)
    async for change in store.watch():
        assert_type(change, Entry[Receipt] | Gone)
    async with ctx.transaction() as tx:
        assert_type(await tx.get(receipts, "k"), Receipt)
        assert_type(await tx.find(receipts, "k"), Receipt | None)
        tx.put(receipts, "k", Order(n=1))  # type: ignore[misc]  # pyright: ignore[reportArgumentType, reportCallIssue]
