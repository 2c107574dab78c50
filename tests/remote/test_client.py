"""The client of remote endpoints, against a server that fails, throttles, stalls and lies."""

from __future__ import annotations

import base64
import itertools
import pickle
import time
from collections.abc import Iterator

import pytest
from endpoint_server import KEY, EndpointServer, ProxyServer
from hypothesis import given
from hypothesis import strategies as st

from inference.errors import ConfigError
from inference.inputs.prompts import Prompt
from inference.remote import Client, Endpoint, RemoteAnswer, RemoteFailure
from inference.remote.pacing import RateLimit, backoff, retry_after


@pytest.fixture(autouse=True)
def key(monkeypatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def server() -> Iterator[EndpointServer]:
    with EndpointServer() as running:
        yield running


def client(server: EndpointServer, **settings) -> Client:
    return Client(Endpoint(server.url, "m", **{"first_delay": 0.01, "timeout": 5.0, "max_retries": 2, **settings}))


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(str(i), f"row {i}", text=text) for i, text in enumerate(texts)]


def test_answers_arrive_in_order_with_the_endpoints_fields(server):
    outcomes = client(server).answer_all(prompts(*(f"hello {i}" for i in "abcdefghijkl")))
    assert [outcome.reply.text for outcome in outcomes] == [f"answer to hello {i}" for i in "abcdefghijkl"]
    first = outcomes[0]
    assert isinstance(first, RemoteAnswer)
    assert (first.reply.prompt_tokens, first.reply.completion_tokens, first.reply.finish_reason) == (3, 4, "stop")
    assert (first.reply.model, first.attempts) == ("served", 1)


@pytest.mark.parametrize(
    "act", ["fail", "cut", "cutchunk", "hangup", "nojson", "list", "two", "none", "empty", "error"]
)
@pytest.mark.parametrize("api", ["chat", "completions"])
def test_only_the_failed_row_is_retried(server, act, api):
    texts = [f"{act} 2 {api}", f"good {act} {api}"]
    first, second = client(server, api=api).answer_all(prompts(*texts))
    # A kept connection that is closed before an answer is opened again within a try.
    assert first.attempts == 3 or (act == "hangup" and first.attempts == 2)
    assert second.attempts == 1
    assert first.reply.text == f"answer to {texts[0]}"
    assert server.tries[texts[1]] == 1


@pytest.mark.parametrize(
    ("act", "kind", "status", "message"),
    [
        ("fail", "unreachable", 500, "status 500: Internal Server Error"),
        ("cut", "unreachable", None, "the response broke off after 13 of 1000 bytes"),
        ("cutchunk", "unreachable", None, "broke off"),
        ("hangup", "unreachable", None, "no response: "),
        ("nojson", "bad_response", 200, "the response is not JSON: <html>welcome</html>"),
        ("list", "bad_response", 200, "the response is not a JSON object: []"),
        ("two", "bad_response", 200, "the response has 2 choices for one prompt"),
        ("none", "bad_response", 200, "the response has 0 choices for one prompt"),
        ("empty", "bad_response", 200, "the response has a choice without a text"),
        ("error", "bad_response", 200, "the response is an error: overloaded"),
        ("refuse", "refused", 400, "status 400: no such thing; you sent Bearer ***"),
        ("move", "refused", 307, "status 307: (nothing)"),
    ],
)
def test_a_row_that_never_succeeds_reports_why(server, act, kind, status, message):
    bad, good = client(server).answer_all(prompts(f"{act} 9 never", "good"))
    assert isinstance(bad, RemoteFailure) and isinstance(good, RemoteAnswer)
    assert (bad.kind, bad.status) == (kind, status)
    assert message in bad.message and bad.message.startswith("127.0.0.1:")
    assert bad.attempts == (1 if kind == "refused" else 3)


@pytest.mark.parametrize("act", ["stall", "drip", "dripheader"])
def test_a_request_has_a_deadline(server, act):
    """Even if the server sends a byte now and then."""
    started = time.monotonic()
    (outcome,) = client(server, timeout=0.3, max_retries=0).answer_all(prompts(f"{act} 9"))
    assert outcome.message.endswith("no whole response within 0.3 s")
    # The server goes on for twenty.
    assert 0.25 < time.monotonic() - started < 10


def test_retry_after_applies_to_all_rows():
    with EndpointServer() as server:
        asking = client(server, first_delay=0.0, concurrency=1)
        first, second = asking.answer_all(prompts("throttle 1 x", "after the throttle"))
        assert (first.attempts, second.attempts) == (2, 1)
        # Whoever is the next: the row itself, or the other one.
        assert server.times[1] - server.times[0] > 0.95
        (never,) = client(server, longest_delay=0.01).answer_all(prompts("throttle 9 x"))
        assert (never.kind, never.status) == ("throttled", 429)


def test_concurrent_requests_are_limited():
    with EndpointServer() as server:
        outcomes = client(server, concurrency=3).answer_all(prompts(*(f"wait 1 {i}" for i in range(12))))
        assert all(isinstance(outcome, RemoteAnswer) for outcome in outcomes)
        assert server.most_at_once == 3
        assert server.connections == 3


def test_a_keep_alive_connection_closed_by_the_server_costs_no_attempt():
    with EndpointServer() as server:
        asking = client(server, concurrency=1, max_retries=0)
        outcomes = asking.answer_all(prompts("close 1 a", "close 1 b", "c"))
        assert [outcome.reply.text for outcome in outcomes] == [
            f"answer to {x}" for x in ("close 1 a", "close 1 b", "c")
        ]
        assert server.connections == 3


def test_no_server_listens():
    with EndpointServer() as server:
        url = server.url
    failed = Client(Endpoint(url, "m", first_delay=0.0, max_retries=1)).answer(prompts("a")[0])
    assert isinstance(failed, RemoteFailure)
    assert (failed.kind, failed.attempts) == ("unreachable", 2)
    assert "refused" in failed.message


def test_the_key_is_only_in_the_header(server, monkeypatch):
    asking = client(server)
    assert KEY not in repr(asking.endpoint) and KEY.encode() not in pickle.dumps(asking.endpoint)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-wrong")
    failed = asking.answer(prompts("a")[0])
    assert (failed.kind, failed.status, failed.attempts) == ("refused", 401, 1)
    assert "sk-wrong" not in failed.message and "***" in failed.message
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret\nX: y")
    with pytest.raises(ConfigError) as caught:
        client(server)
    assert "secret" not in str(caught.value)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(ConfigError, match="OPENAI_API_KEY is not set"):
        client(server)
    client(server, key_variable=None)


@pytest.mark.parametrize("cut", range(len(KEY) + 1))
def test_a_key_across_the_cut_of_a_long_message_is_not_shown(server, cut):
    """Messages are shortened to 200 characters, and the key is cut out before."""
    (failed,) = client(server).answer_all(prompts(f"long 1 {200 - cut}"))
    assert failed.status == 400 and failed.message.endswith("...")
    shown = failed.message.partition("padding ")[2]
    assert not any(KEY[at : at + 8] in shown for at in range(len(KEY) - 7)), shown


def test_a_proxy_with_user_and_password(server, monkeypatch):
    with ProxyServer() as proxy:
        monkeypatch.setenv("http_proxy", f"http://me:pass%40word@127.0.0.1:{proxy.server_address[1]}")
        monkeypatch.setenv("no_proxy", "")
        (answer,) = client(server, max_retries=0).answer_all(prompts("by the proxy"))
        assert answer.reply.text == "answer to by the proxy"
        assert proxy.seen == [("Basic " + base64.b64encode(b"me:pass@word").decode(), f"{server.url}/chat/completions")]
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{proxy.server_address[1]}")
        (refused,) = client(server, max_retries=0).answer_all(prompts("without a password"))
        assert (refused.kind, refused.status) == ("refused", 407)


def test_a_proxy_that_cannot_be_used_is_one_line(server, monkeypatch):
    monkeypatch.setenv("http_proxy", "socks9://me:password@host")
    with pytest.raises(ConfigError) as caught:
        client(server)
    assert "look at http_proxy" in str(caught.value) and "password" not in str(caught.value)


def test_a_query_of_the_url_is_kept():
    endpoint = Endpoint("https://host:1/openai/?api-version=2024-10-21", "m")
    assert endpoint.target == "https://host:1/openai/chat/completions?api-version=2024-10-21"


def test_settings_by_the_names_of_the_endpoint(server):
    row = Prompt("x", "row x", messages=({"role": "user", "content": "settings"},), settings={"top_p": 0.5})
    asked = {"max_new_tokens": 7, "do_sample": False, "top_p": 1.0, "stop": ("a", "b")}
    client(server, extra={"top_k": 5}).answer(row, asked)
    expected = {"model": "m", "max_tokens": 7, "temperature": 0, "top_p": 0.5, "stop": ["a", "b"], "top_k": 5}
    assert server.bodies[-1] == {"messages": [{"role": "user", "content": "settings"}], **expected}
    ids = Prompt("x", "row x", token_ids=(1, 2))
    client(server, api="completions").answer(ids)
    assert server.bodies[-1] == {"model": "m", "prompt": [1, 2]}


@pytest.mark.parametrize(
    ("prompt", "api", "message"),
    [
        (Prompt("x", "row x", text="a", settings={"num_beams": 2}), "chat", "row x: the endpoint has no setting"),
        (Prompt("x", "row x", token_ids=(1,)), "chat", "row x: a chat endpoint does not accept token ids"),
        (Prompt("x", "row x", text="a", chat={"tools": []}), "chat", "row x: 'tools' is not sent"),
        (
            Prompt("x", "row x", messages=({"role": "user"},)),
            "completions",
            "does not accept messages; set api to chat",
        ),
    ],
)
def test_rows_that_cannot_be_sent(server, prompt, api, message):
    failed = client(server, api=api).answer(prompt)
    assert (failed.kind, failed.attempts) == ("bad_row", 0)
    assert message in failed.message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"url": "127.0.0.1/v1"}, "is not the URL of an endpoint"),
        ({"url": "http://me:secret@host/v1"}, "contains a user or a password"),
        ({"url": "http://host:no/v1"}, "is not the URL of an endpoint"),
        ({"api": "chats"}, "api is 'chats'; accepted: chat or completions"),
        ({"concurrency": 0}, "concurrency is 0; at least 1"),
        ({"timeout": 0}, "timeout is 0; it must be above 0"),
        ({"max_retires": 3}, "unknown key 'max_retires'; did you mean 'max_retries'?"),
        ({"model": ""}, "model is missing"),
        ({"timeout": "1"}, "a value has the wrong type"),
    ],
)
def test_invalid_endpoints(changes, message):
    with pytest.raises(ConfigError) as caught:
        Endpoint.from_mapping({"url": "http://127.0.0.1:1/v1", "model": "m", **changes})
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


@given(st.integers(0, 200), st.floats(0, 1))
def test_backoff_doubles_up_to_its_limit(attempt, drawn):
    wait = backoff(attempt, 0.5, 60.0, lambda: drawn)
    full = min(0.5 * 2.0 ** min(attempt, 60), 60.0)
    assert full / 2 <= wait <= full


def test_retry_after_is_seconds_or_a_date():
    assert retry_after("7") == 7
    assert retry_after("Thu, 01 Jan 1970 00:01:40 GMT", now=lambda: 90.0) == 10
    assert retry_after("Thu, 01 Jan 1970 00:00:01 GMT", now=lambda: 90.0) == 0
    assert retry_after(None) is retry_after("soon") is retry_after("-1") is retry_after("1.5") is None


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@given(st.floats(0.2, 50), st.lists(st.floats(0, 3), min_size=2, max_size=60))
def test_requests_per_second_stay_within_rate_and_burst(rate, pauses):
    clock = Clock()
    limit = RateLimit(rate, clock, clock.sleep)
    begun = []
    for pause in pauses:
        clock.now += pause
        limit.wait()
        begun.append(clock.now)
    for first, last in itertools.combinations(range(len(begun)), 2):
        seconds = begun[last] - begun[first]
        assert last - first + 1 <= rate * seconds + max(rate, 1) + 1e-6
