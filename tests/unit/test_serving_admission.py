"""Who gets a place, who comes again later, and that every place is given back."""

import asyncio

import pytest

from tokensqueeze.serving.admission import Admission, Load
from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.auth import KeyHolder
from tokensqueeze.serving.settings import LimitSettings

ANN, BOB = KeyHolder("ann"), KeyHolder("bob", max_concurrency=2)


def admission(*, max_concurrency: int = 4, max_queued: int = 6) -> Admission:
    limits = LimitSettings(max_concurrency=max_concurrency, max_queued=max_queued, retry_after_seconds=7)
    return Admission(limits)


def refusal(places: Admission, holder: KeyHolder, choices: int) -> ApiError:
    before = places.load
    with pytest.raises(ApiError) as refused, places.admit(holder, choices):
        pass
    assert places.load == before
    return refused.value


def test_a_key_may_have_as_many_choices_under_way_as_the_limit_says():
    places = admission()
    with places.admit(ANN, 3), places.admit(ANN, 1):
        assert places.load == Load(running=4, queued=4)
        error = refusal(places, ANN, 1)
    assert (error.status, error.code, error.headers["Retry-After"]) == (429, "concurrency_limit", "7")
    assert places.load == Load(0, 0)


def test_a_key_has_its_own_limit_and_its_own_count():
    places = admission()
    with places.admit(ANN, 4), places.admit(BOB, 2):
        assert refusal(places, BOB, 1).code == "concurrency_limit"


def test_choices_of_all_keys_share_the_queue_until_their_first_token():
    places = admission()
    with places.admit(ANN, 4) as first, places.admit(BOB, 2):
        error = refusal(places, KeyHolder("eve"), 1)
        assert (error.status, error.code, error.headers["Retry-After"]) == (429, "queue_full", "7")
        first.first_token()
        assert places.load == Load(running=6, queued=5)
        with places.admit(KeyHolder("eve"), 1):
            assert places.load == Load(running=7, queued=6)


def test_first_tokens_count_once_per_choice():
    places = admission()
    with places.admit(ANN, 2) as admitted:
        for _ in range(5):
            admitted.first_token()
        assert places.load == Load(running=2, queued=0)
    assert places.load == Load(0, 0)


@pytest.mark.parametrize(("holder", "choices", "most"), [(ANN, 5, 4), (BOB, 3, 2), (KeyHolder("eve", 100), 7, 6)])
def test_more_choices_than_there_will_ever_be_room_for_are_a_mistake(holder: KeyHolder, choices: int, most: int):
    error = refusal(admission(), holder, choices)
    assert (error.status, error.param) == (400, "n")
    assert str(most) in error.message


def test_a_place_is_given_back_when_its_request_fails_or_is_cancelled():
    places = admission()
    with pytest.raises(ZeroDivisionError), places.admit(ANN, 2) as admitted:
        admitted.first_token()
        raise ZeroDivisionError
    assert places.load == Load(0, 0)

    async def hold() -> None:
        with places.admit(ANN, 3):
            await asyncio.Event().wait()

    async def cancelled() -> None:
        task = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert places.load == Load(3, 3)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(cancelled())
    assert places.load == Load(0, 0)


def test_a_first_token_behind_the_end_changes_nothing():
    places = admission()
    with places.admit(ANN, 1) as admitted:
        pass
    admitted.first_token()
    assert places.load == Load(0, 0)


def test_every_change_is_told():
    told: list[Load] = []
    places = Admission(LimitSettings(), on_change=told.append)
    with places.admit(ANN, 2) as admitted:
        admitted.first_token()
    assert told == [Load(2, 2), Load(2, 1), Load(0, 0)]
