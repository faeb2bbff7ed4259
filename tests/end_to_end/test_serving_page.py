"""The page at `/` in a browser, over engines that play scripts: streams, verdict, keys, failures, keyboard, narrow screen."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver import Chrome
from selenium.webdriver.common.keys import Keys

from tests.end_to_end.page_contrast import contrasts
from tests.end_to_end.scripted_models import ASKS_FOR_MARKUP, BREAKS, FOR_EVER, LONG, QUESTION, SHORT, length, long, short
from tests.end_to_end.served_page import Page, break_connections, chromium, until
from tests.unit.served_app import Served, served
from tokensqueeze.serving.auth import key_digest

KEY, NARROW_KEY = "right-key", "key-for-one-at-a-time"
SETTINGS = {
    "keys": [
        {"name": "anybody", "sha256": key_digest(KEY)},
        {"name": "one", "sha256": key_digest(NARROW_KEY), "max_concurrency": 1},
    ],
    "stream_interval_seconds": 0,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Chrome]:
    with chromium() as started:
        yield started


@pytest.fixture(scope="module")
def app(browser: Chrome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served({"base": (long,), "squeezed": (short,)}, tmp_path_factory.mktemp("log") / "access", **SETTINGS) as started:
        yield started


@pytest.fixture
def page(browser: Chrome, app: Served) -> Iterator[Page]:
    """A tab of its own; whatever a test does in it, nothing else than the server is asked and the console stays empty."""
    first = browser.current_window_handle
    browser.switch_to.new_window("tab")
    tab = Page(browser)
    tab.console()
    tab.requested()
    yield tab
    complaints, addresses = tab.console(), tab.requested()
    browser.close()
    browser.switch_to.window(first)
    assert complaints == []
    assert {address for address in addresses if not address.startswith((app.url, "data:", "about:"))} == set()


def ask(page: Page, question: str) -> None:
    field = page.find("#question")
    field.clear()
    field.send_keys(question, Keys.ENTER)


def test_streams_both_answers_at_once_while_their_counts_rise(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, QUESTION)
    seen: list[tuple[int, int]] = []
    while page.running:
        seen.append((sum(page.tokens("left")), sum(page.tokens("right"))))
    for side in zip(*seen, strict=True):
        assert list(side) == sorted(side)
    assert any(0 < left < length(LONG) and 0 < right < length(SHORT) for left, right in seen)
    assert len({left for left, _ in seen}) >= 4


def test_says_which_was_shorter_with_the_tokens_that_both_columns_show(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, QUESTION)
    verdict = page.wait_for_the_end()
    long, short = length(LONG), length(SHORT)
    assert verdict == f"squeezed: {short} tokens, base: {long}, × {short / long:.2f}"
    assert sum(page.tokens("left")) == long
    assert sum(page.tokens("right")) == short
    assert page.tokens("right")[0] == length("12 + 7 = 19.\n</think>") - 1
    left_seconds, right_seconds = page.text("#left .seconds"), page.text("#right .seconds")
    assert page.text("#verdict .detail").startswith(f"{right_seconds} s against {left_seconds} s. Both answer 19. Seed ")
    assert float(left_seconds) > float(right_seconds) > 0
    assert int(page.text("#left .speed")) == pytest.approx(long / float(left_seconds), rel=0.1)


def test_bars_share_one_scale(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, QUESTION)
    page.wait_for_the_end()
    wide = "return document.querySelector(arguments[0]).getBoundingClientRect().width"
    settled = "return document.getAnimations().length === 0"
    until(lambda: page.run(settled), "the bars to stand still")
    left, right = (page.run(wide, f"#{side}-bar .whole") for side in ("left", "right"))
    assert left == pytest.approx(page.run(wide, "#left-bar .track"))
    assert right / left == pytest.approx(length(SHORT) / length(LONG), abs=0.01)


def test_reasoning_stands_apart_and_folds_and_the_boxed_answer_is_marked(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, QUESTION)
    page.wait_for_the_end()
    assert page.text("#right .reasoning .text") == "12 + 7 = 19."
    assert page.text("#right .answer .text") == "The answer is 19."
    assert page.text("#right mark") == "19"
    page.find("#right summary").click()
    assert not page.find("#right .reasoning .text").is_displayed()


def test_what_a_model_writes_stays_text(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, ASKS_FOR_MARKUP)
    page.wait_for_the_end()
    assert page.text("#left .reasoning .text") == "<b>bold</b>"
    assert page.text("#left .answer .text") == '<img src="x" onerror="document.title = 1"> is \\frac{1}{2}, not \\boxed{3.'
    assert page.text("#left mark") == "\\frac{1}{2}"
    assert page.run("return document.querySelectorAll('#columns img, #columns b').length") == 0


def test_stop_ends_both_answers_and_frees_their_places(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, FOR_EVER)
    until(lambda: min(sum(page.tokens("left")), sum(page.tokens("right"))) > 5, "tokens")
    assert all(source.open for source in app.sources.values())
    page.find("#stop").click()
    assert page.wait_for_the_end() == "No verdict"
    assert page.text("#verdict .detail").startswith("base: stopped; squeezed: stopped.")
    until(lambda: not any(source.open for source in app.sources.values()), "the engines to be told")
    assert all(source.closed for source in app.sources.values())


def test_settings_of_the_form_reach_both_engines(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    for field, value in (("temperature", "0.3"), ("budget", "5"), ("seed", "11")):
        page.find(f"#{field}").clear()
        page.find(f"#{field}").send_keys(value)
    ask(page, QUESTION)
    page.wait_for_the_end()
    for source in app.sources.values():
        request = source.requests[-1]
        assert request.temperature == 0.3
        assert request.thinking is not None
        assert request.thinking.budget == 5
    assert app.sources["base"].requests[-1].seed == app.sources["squeezed"].requests[-1].seed
    assert page.text("#verdict .detail").endswith("Seed 11.")
    assert "its thinking was closed at the budget" in page.text("#left .phase")


def test_asking_again_draws_another_seed(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, QUESTION)
    page.wait_for_the_end()
    first = page.text("#verdict .detail")
    page.find("#question").send_keys(" And then?")
    page.find("#again").click()
    until(lambda: page.running, "the question to be asked")
    page.wait_for_the_end()
    assert page.value("#question") == QUESTION
    assert re.findall(r"Seed \d+", first) != re.findall(r"Seed \d+", page.text("#verdict .detail"))


def test_an_example_is_asked_at_a_click(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    page.find("#examples button").click()
    page.wait_for_the_end()
    assert page.value("#question").endswith("How many eggs?")


def test_either_side_shows_any_model(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    page.find("#left select").send_keys("squeezed")
    ask(page, QUESTION)
    assert page.wait_for_the_end() == f"A tie: {length(SHORT)} tokens each"
    assert page.text("#left h2") == page.text("#right h2") == "Squeezed"


def test_the_address_hands_the_key_over_and_does_not_keep_it(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    assert page.browser.current_url == f"{app.url}/"
    page.browser.refresh()
    until(lambda: page.find("#ask-form").is_displayed(), "the form")
    assert not page.find("#key-form").is_displayed()


def test_a_wrong_key_is_said_to_be_wrong_and_the_right_one_goes_on(page: Page, app: Served) -> None:
    page.open(app, key=None)
    assert not page.find("#problem").is_displayed()
    page.type("wrong-key" + Keys.ENTER)
    until(lambda: page.find("#problem").is_displayed(), "a word on the key")
    assert page.text("#problem") == "That is not one of this server's keys."
    page.type(KEY + Keys.ENTER)
    until(lambda: page.find("#ask-form").is_displayed(), "the form")
    assert not page.find("#problem").is_displayed()
    ask(page, QUESTION)
    assert page.wait_for_the_end().startswith("squeezed: ")


def test_a_key_with_room_for_one_is_told_when_to_try_again(page: Page, app: Served) -> None:
    page.open(app, key=NARROW_KEY)
    ask(page, QUESTION)
    assert page.wait_for_the_end() == "No verdict"
    (refused,) = [side for side in ("left", "right") if page.find(f"#{side} .error").is_displayed()]
    words = page.text(f"#{refused} .error")
    assert words.startswith("Too many requests at once. ")
    assert words.endswith("Try again in 1 second.")
    assert sum(page.tokens({"left": "right", "right": "left"}[refused])) > 0


def test_an_engine_that_breaks_is_reported_behind_what_it_had_said(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, BREAKS)
    assert page.wait_for_the_end() == "No verdict"
    assert page.text("#left .error").startswith("The server broke off: ")
    assert page.text("#left .reasoning .text") == "12 + 7"


def test_a_connection_that_breaks_is_told_from_an_end(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    ask(page, FOR_EVER)
    until(lambda: min(sum(page.tokens("left")), sum(page.tokens("right"))) > 5, "tokens")
    break_connections(app)
    assert page.wait_for_the_end() == "No verdict"
    assert page.text("#left .error") == "The connection broke off before the end of the answer."


def test_a_server_that_is_gone_is_said_to_be_gone(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    page.tell_browser("Network.enable")
    page.tell_browser("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=0, uploadThroughput=0)
    ask(page, QUESTION)
    assert page.wait_for_the_end() == "No verdict"
    assert page.text("#left .error") == "The server can't be reached. Is it still running?"


def test_everything_can_be_done_with_the_keyboard(page: Page, app: Served) -> None:
    page.open(app, key=None)
    page.type(KEY + Keys.ENTER)
    until(lambda: page.find("#ask-form").is_displayed(), "the form")
    page.type(FOR_EVER + Keys.ENTER)
    until(lambda: sum(page.tokens("left")) > 5, "tokens")
    page.type(Keys.ESCAPE)
    assert page.wait_for_the_end() == "No verdict"
    stops = [focused(page)]
    while stops[-1] != "right reasoning":
        page.type(Keys.TAB)
        stops.append(focused(page))
        assert page.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid", stops
    controls = ["Ask", "Stop", "temperature", "budget", "seed", "Ask again"]
    columns = [f"{side} {stop}" for side in ("left", "right") for stop in ("select", "summary", "reasoning")]
    assert stops == ["question", *["example"] * 4, *controls, *columns]


def focused(page: Page) -> str:
    """Name what has the focus: by its id or its words, behind the column's where it is in one."""
    return page.run("""
        const it = document.activeElement, column = it.closest(".column")?.id;
        if (it.closest("#examples")) return "example";
        if (column) return `${column} ${it.matches(".reasoning .text") ? "reasoning" : it.localName}`;
        return it.localName === "button" ? it.textContent : it.id;
    """)


def test_shift_and_enter_start_a_line(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    page.find("#question").send_keys("one", Keys.SHIFT, Keys.ENTER, Keys.NULL, "two")
    assert page.value("#question") == "one\ntwo"
    assert not page.running
    page.type(Keys.CONTROL + Keys.ENTER)
    page.wait_for_the_end()


def test_a_narrow_screen_stacks_the_columns_and_needs_no_sideways_scrolling(page: Page, app: Served) -> None:
    page.tell_browser("Emulation.setDeviceMetricsOverride", width=360, height=740, deviceScaleFactor=1, mobile=True)
    page.open(app, key=KEY)
    ask(page, QUESTION)
    page.wait_for_the_end()
    root = page.run("const e = document.documentElement; return [e.clientWidth, e.scrollWidth]")
    assert root == [360, 360]
    left, right = (page.find(f"#{side}").rect for side in ("left", "right"))
    assert right["y"] >= left["y"] + left["height"]
    assert left["width"] == right["width"] > 300


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_word_has_the_contrast_that_wcag_aa_asks_for(page: Page, app: Served, scheme: str) -> None:
    page.tell_browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
    page.open(app, key=KEY)
    ask(page, BREAKS)
    page.wait_for_the_end()
    ask(page, QUESTION)
    page.wait_for_the_end()
    page.run("document.querySelectorAll('[hidden]').forEach((node) => { node.hidden = false; })")
    found = contrasts(page)
    assert len(found) > 20
    assert {text: ratio for text, ratio in found.items() if ratio < 4.5} == {}


def test_nothing_moves_for_who_asked_for_less_motion(page: Page, app: Served) -> None:
    page.tell_browser("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    page.open(app, key=KEY)
    ask(page, FOR_EVER)
    until(lambda: sum(page.tokens("left")) > 5, "tokens")
    assert page.run("return document.getAnimations().length") == 0
    page.find("#stop").click()
    page.wait_for_the_end()


def test_the_policy_of_the_server_is_in_force(page: Page, app: Served) -> None:
    page.open(app, key=KEY)
    page.run("""
        const script = document.createElement("script");
        script.textContent = "document.title = 'taken over'";
        document.body.append(script);
    """)
    assert page.run("return document.title") == "tokensqueeze: side by side"
    (complaint,) = page.console()
    assert "Content Security Policy" in complaint


def test_one_model_has_one_column(page: Page, tmp_path: Path) -> None:
    with served({"alone": (short,)}, tmp_path / "access", **SETTINGS) as alone:
        page.open(alone, key=KEY)
        ask(page, QUESTION)
        assert page.wait_for_the_end() == f"alone: {length(SHORT)} tokens"
        assert page.run("return document.querySelectorAll('.column').length") == 1
        assert page.text("h1") == "Ask the model"
        assert {address for address in page.requested() if not address.startswith(alone.url)} == set()
