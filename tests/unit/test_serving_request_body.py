"""Bodies made to cost much: each is refused for its first mistake, in time that grows with its length alone."""

import json
import time
from typing import Any

import pytest

from tokensqueeze.serving.api_errors import ApiError
from tokensqueeze.serving.protocol import ChatCompletionRequest, CompletionRequest
from tokensqueeze.serving.request_body import read_request

MEBIBYTE = 2**20
MESSAGE: dict[str, Any] = {"role": "user", "content": "hello"}


def many(value: str, length: int = MEBIBYTE) -> str:
    return ",".join([value] * (length // (len(value) + 1)))


NAMES = ",".join(f'"{number}":1' for number in range(100_000))
COSTLY = {
    "a name that stands twice behind many": (ChatCompletionRequest, f'{{{NAMES},"99999":1}}'),
    "many unknown names": (ChatCompletionRequest, f'{{"model":"demo","messages":[],{NAMES}}}'),
    "many messages that are none": (ChatCompletionRequest, f'{{"model":"demo","messages":[{many("1")}]}}'),
    "many empty messages": (ChatCompletionRequest, f'{{"model":"demo","messages":[{many("{}")}]}}'),
    "many empty prompts": (CompletionRequest, f'{{"model":"demo","prompt":[{many("[]")}]}}'),
    "many wrong stops": (CompletionRequest, f'{{"model":"demo","prompt":"a","stop":[{many("1")}]}}'),
    "many wrong parts": (ChatCompletionRequest, f'{{"model":"demo","messages":[{{"role":"user","content":[{many("{}")}]}}]}}'),
}


@pytest.mark.parametrize(("kind", "body"), COSTLY.values(), ids=COSTLY)
def test_a_costly_body_is_refused_at_its_first_mistake(kind: type[ChatCompletionRequest], body: str):
    began = time.process_time()
    with pytest.raises(ApiError) as refused:
        read_request(body.encode(), kind)
    # Counting the names of one object for each of them took minutes; listing every mistake seconds.
    assert time.process_time() - began < 1.5
    assert refused.value.status == 400
    assert len(refused.value.message) < 500


def test_a_name_that_stands_twice_is_told():
    body = json.dumps({"model": "demo", "messages": [MESSAGE]})[:-1] + ', "model": "other"}'
    with pytest.raises(ApiError, match='the name "model" stands twice'):
        read_request(body.encode(), ChatCompletionRequest)


def test_the_first_wrong_message_is_named_by_its_place():
    body = json.dumps({"model": "demo", "messages": [MESSAGE, MESSAGE, 5, 6]})
    with pytest.raises(ApiError) as refused:
        read_request(body.encode(), ChatCompletionRequest)
    assert refused.value.param == "messages.2"
