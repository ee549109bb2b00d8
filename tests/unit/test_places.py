"""Who gets a place among the requests."""

import asyncio

from pipeline.download.places import Places


async def test_a_free_place_is_had_at_once_whoever_asks() -> None:
    places = Places(2)
    await asyncio.gather(places.acquire(lambda: 7), places.acquire(lambda: 3))


async def test_waiters_go_in_by_turn_and_among_equals_in_order_of_arrival() -> None:
    places, order = Places(1), []
    await places.acquire(lambda: 0)

    async def wait(name: str, turn: int) -> None:
        await places.acquire(lambda: turn)
        order.append(name)
        places.release()

    waiting = [asyncio.create_task(wait(name, turn)) for name, turn in [("c", 2), ("a", 1), ("b", 1), ("d", 3)]]
    await asyncio.sleep(0)
    places.release()
    await asyncio.gather(*waiting)
    assert order == ["a", "b", "c", "d"]


async def test_a_place_given_to_a_cancelled_waiter_goes_to_the_next() -> None:
    places = Places(1)
    await places.acquire(lambda: 0)
    first, second = asyncio.create_task(places.acquire(lambda: 1)), asyncio.create_task(places.acquire(lambda: 2))
    await asyncio.sleep(0)
    places.release()
    first.cancel()
    await asyncio.wait_for(second, 5)
    places.release()
    await asyncio.wait_for(places.acquire(lambda: 9), 5)


async def test_a_waiter_whose_turn_became_later_waits_on() -> None:
    places, order, turns = Places(1), [], {"was first": 0, "second": 1}
    await places.acquire(lambda: 0)

    async def wait(name: str) -> None:
        await places.acquire(lambda: turns[name])
        order.append(name)
        places.release()

    waiting = [asyncio.create_task(wait(name)) for name in turns]
    await asyncio.sleep(0)
    turns["was first"] = 2
    places.release()
    await asyncio.gather(*waiting)
    assert order == ["second", "was first"]
