"""The page in a real browser: Chromium where it is installed, checked by axe-core where npm has brought it.

`make browser` installs both.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from serving import DOCUMENTS, EVIL

AXE = Path(__file__).with_name("node_modules") / "axe-core" / "axe.min.js"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
PHONE, DESKTOP = (390, 844), (1280, 900)
QUERY = "copper harbor in winter"
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: make browser")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield launched
        launched.close()


@pytest.fixture()
def tab(browser: Any, url: str) -> Iterator[Any]:
    """A tab that counts what goes wrong in it and what it asks of others."""
    with browser.new_context(viewport={"width": DESKTOP[0], "height": DESKTOP[1]}, base_url=url) as context:
        page = context.new_page()
        wrong: list[str] = []
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("console", lambda message: wrong.append(message.text) if message.type == "error" else None)
        page.on("request", lambda request: None if request.url.startswith(url) else wrong.append(request.url))
        page.on("dialog", lambda dialog: (wrong.append(dialog.message), dialog.dismiss()))
        page.wrong = wrong
        yield page
        assert [each for each in wrong if "422" not in each] == []


def test_a_search_opens_a_passage_by_keyboard_alone(tab: Any, url: str) -> None:
    tab.goto("/")
    tab.evaluate("document.activeElement.blur()")
    tab.keyboard.press("/")
    tab.keyboard.type(QUERY)
    tab.keyboard.press("Enter")
    tab.wait_for_selector(".result")
    assert tab.inner_text("#status") == f"{len(DOCUMENTS)} documents, the best first."
    assert tab.title() == f"{QUERY} · m2bert" and "q=copper" in tab.url
    strip = tab.locator(".result", has_text="long.txt").locator(".strip")
    peaks = strip.locator(".peak")
    assert peaks.count() == 3
    assert [peaks.nth(i).get_attribute("tabindex") for i in range(3)].count("0") == 1  # one stop of the Tab key
    strip.locator(".peak[tabindex='0']").focus()
    tab.keyboard.press("Home")
    numbers = [peaks.nth(i).get_attribute("data-passage") for i in range(3)]
    seen = []
    for _ in range(3):
        seen.append(tab.evaluate("document.activeElement.dataset.passage"))
        shown = tab.locator(".result", has_text="long.txt").locator(".quotes .current")
        assert shown.get_attribute("data-passage") == seen[-1]
        tab.keyboard.press("ArrowRight")
    assert seen == numbers and tab.evaluate("document.activeElement.dataset.passage") == numbers[-1]
    tab.keyboard.press("ArrowLeft")
    tab.keyboard.press("Enter")
    tab.wait_for_url("**/read?**")
    mark = tab.locator("mark:target")
    assert mark.get_attribute("id") == f"passage-{numbers[1]}" and mark.is_visible()
    top = mark.bounding_box()["y"]
    assert 0 <= top < DESKTOP[1]
    head, marked = tab.locator(".sticky").bounding_box(), mark.bounding_box()
    assert head["x"] <= marked["x"]  # nothing shows beside the head while the text goes under it
    assert head["x"] + head["width"] >= marked["x"] + marked["width"]
    tab.locator(f".peak[data-passage='{numbers[1]}']").focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("mark:target").get_attribute("id") == f"passage-{numbers[2]}"
    tab.go_back()
    tab.wait_for_selector(".result")


def test_a_click_opens_a_passage_and_the_search_comes_back(tab: Any) -> None:
    tab.goto("/?" + urlencode({"q": QUERY}))
    tab.locator(".peak").nth(1).click()
    tab.wait_for_selector("mark:target")
    tab.get_by_role("link", name="← Results for").click()
    tab.wait_for_selector(".result")
    assert tab.input_value("#q") == QUERY
    tab.get_by_label("Rank by").select_option("words")
    tab.locator(".strip").first.wait_for(state="detached")
    assert "rank=words" in tab.url


def test_loading_errors_and_nothing_found_are_told(tab: Any, url: str) -> None:
    tab.goto("/")
    tab.route("**part=results*", lambda route: None)  # never answered
    tab.fill("#q", "river")
    tab.click("button")
    tab.wait_for_selector("#results[aria-busy='true']")
    assert tab.inner_text("#status") == "Searching …"
    tab.unroute("**part=results*")
    tab.route("**part=results*", lambda route: route.abort())
    tab.click("button")
    tab.wait_for_selector("[role=alert]")
    assert "The server does not answer" in tab.inner_text("[role=alert]")
    tab.wrong.clear()
    tab.unroute("**part=results*")
    tab.click("text=Try again")
    tab.wait_for_selector(".result")
    tab.get_by_label("Rank by").select_option("words")
    tab.fill("#q", "zebra")
    tab.click("button")
    tab.wait_for_selector("text=Nothing was found")
    assert tab.inner_text("#status") == "Nothing was found."


def test_what_documents_hold_is_shown_and_never_run(tab: Any) -> None:
    tab.goto("/?" + urlencode({"q": EVIL}))
    tab.fill("#q", EVIL + " ")
    tab.click("button")
    tab.wait_for_url(lambda address: "+&" in address)
    link = tab.locator(".result h2 a", has_text="<script>alert(1)</script>")
    assert link.inner_text() == EVIL
    link.click()
    tab.wait_for_selector("article")
    assert tab.inner_text("h1") == EVIL and "<img src=x onerror=alert(1)>" in tab.inner_text("article")
    assert tab.title() == f"{EVIL} · m2bert" and tab.locator("article img, article b").count() == 0


CHECK = """
rules => axe.run(document, {resultTypes: ['violations'], ...(rules ? {runOnly: rules} : {})}).then(found => ({
    violations: found.violations.map(each => [each.id, each.nodes.map(node => node.html.slice(0, 120))]),
    passes: found.passes.length,
    width: document.documentElement.scrollWidth,
}))
"""
PAGES = {
    "results": "/?" + urlencode({"q": QUERY}),
    "document": "/read?" + urlencode({"id": "long.txt", "q": QUERY}) + "#passage-1",
    "start": "/",
    "nothing found": "/?q=zebra&rank=words",
    "refused": "/?q=river&rank=best",
    "manual": "/docs",
    "no document": "/read?id=nothing",
}


@pytest.fixture(scope="module")
def checked(browser: Any, url: str) -> Iterator[Any]:
    """A page to be judged, in one tab for all."""
    with browser.new_context(base_url=url) as context:
        yield context.new_page()


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: make browser")
@pytest.mark.parametrize("address", PAGES.values(), ids=PAGES)
def test_an_accessibility_checker_finds_nothing(checked: Any, address: str) -> None:
    """On a desktop and a phone, light and dark. Loaded once; colours alone change between schemes of one size."""
    checked.goto("about:blank")  # whatever the page before it was
    checked.goto(address)
    checked.evaluate(AXE.read_text(encoding="utf-8"))
    for size, scheme, rules in (
        (DESKTOP, "light", None), (DESKTOP, "dark", ["color-contrast"]),
        (PHONE, "dark", None), (PHONE, "light", ["color-contrast"]),
    ):  # fmt: skip
        checked.set_viewport_size({"width": size[0], "height": size[1]})
        checked.emulate_media(color_scheme=scheme)
        found = checked.evaluate(CHECK, rules)
        assert found["violations"] == [], (size, scheme)
        assert found["passes"] >= (1 if rules else 11)
        assert found["width"] <= size[0]


@pytest.mark.skipif(not AXE.is_file(), reason="needs axe-core: make browser")
def test_the_checker_sees_what_is_wrong(checked: Any) -> None:
    checked.goto("/")
    checked.evaluate(AXE.read_text(encoding="utf-8"))
    checked.emulate_media(color_scheme="light")
    checked.evaluate("document.querySelector('label[for=q]').remove()")
    checked.evaluate("document.body.style.color = '#bbb'")
    assert {each for each, _ in checked.evaluate(CHECK, None)["violations"]} >= {"empty-heading", "color-contrast"}
    checked.evaluate("document.body.style.color = ''")
    checked.emulate_media(color_scheme="dark")
    checked.evaluate("document.body.style.color = '#333'")
    assert {each for each, _ in checked.evaluate(CHECK, ["color-contrast"])["violations"]} == {"color-contrast"}
