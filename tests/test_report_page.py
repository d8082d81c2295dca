"""The report in a real browser: what it shows, what hostile texts cannot do, phones, the keyboard, the dark."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import PHONE, Seen, launched, opened
from invented import Invented, invent
from playwright.sync_api import Browser
from small import edited

from evocluster.report import page
from evocluster.report.story import facts

HOSTILE = (
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(2)>",
    "javascript:alert(3)",
    "${alert(4)}",
    "{{7*7}} {{FACTS}}",
    "nul \x00 bell \x07",
    "right \u202eto left\u202c \u2066isolate\u2069",
    "line\u2028and\u2029paragraph",
    "]]> --> <!-- */",
    "x" * 3000,
    "&lt;b&gt; &amp; <b>bold</b>",
)
LONE = "lone \ud800 half"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with launched() as found:
        yield found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a finished run."""
    run = invent(tmp_path_factory.mktemp("run") / "run")
    page.write(facts(run), run / "report.html")
    return run / "report.html"


@pytest.fixture(scope="module")
def desk(browser: Browser, report: Path) -> Iterator[Seen]:
    """It on a desk, shared: a test leaves nothing selected."""
    with opened(browser, report) as seen:
        yield seen


def middle(seen: Seen, selector: str) -> tuple[float, float]:
    """Where the first element is, once it is in sight."""
    found = seen.page.locator(selector).first
    found.evaluate("one => one.scrollIntoView({block: 'center'})")
    box = found.bounding_box()
    assert box
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


SECTIONS = (
    *("summary", "front", "genes", "search", "lineage", "examples", "failures", "spend", "genomes", "configuration"),
)


def test_everything_is_there_and_nothing_is_asked_for(desk: Seen) -> None:
    found = desk.page.evaluate("[...document.querySelectorAll('section')].map(one => one.id)")
    assert tuple(found) == SECTIONS
    assert desk.quiet, (desk.dialogs, desk.errors, desk.requests)
    assert desk.widest() == 1280
    assert desk.page.title() == "invented · evocluster"


def test_the_headline_has_what_front_json_says(desk: Seen, report: Path) -> None:
    front = json.loads((report.parent / "front.json").read_text())
    best = next(member for member in front["members"] if member["recommended"])
    tile = desk.text(".tile")
    assert f"{front['start']['test']['quality']['value']:.2f}" in tile
    assert f"{best['test']['quality']['value']:.2f}" in tile
    assert f"{best['test']['quality']['low']:.2f}" in tile
    assert best["genome"][:8] in desk.text(".why")
    assert "measured on test (100 examples)" in desk.text("#summary")


def test_the_pointer_shows_a_genome_and_a_click_keeps_it(desk: Seen, report: Path) -> None:
    desk.page.mouse.move(*middle(desk, "#front svg.plot .glyph.winner"))
    tip = desk.text("#tip")
    front = json.loads((report.parent / "front.json").read_text())
    best = next(member["genome"] for member in front["members"] if member["recommended"])
    assert best[:8] in tip
    assert "recommended" in tip
    assert "rubric" in tip
    desk.page.mouse.down()
    desk.page.mouse.up()
    assert best[:8] in desk.text("#inspector h3")
    assert "rubric" in desk.text("#inspector dl")
    assert desk.page.locator("#genes .pc.chosen").count() == 1
    desk.page.keyboard.press("Escape")
    assert desk.page.locator("#inspector").is_hidden()


def test_the_front_can_be_walked_with_the_keyboard(desk: Seen) -> None:
    plot = desk.page.locator("#front svg.plot").first
    plot.focus()
    first = set()
    for _ in range(3):
        desk.page.keyboard.press("ArrowRight")
        first.add(desk.text("#tip code"))
    assert len(first) == 3
    assert "quality" in desk.text("#live")
    desk.page.keyboard.press("Enter")
    assert desk.text("#tip code") in desk.text("#inspector h3")
    assert desk.page.evaluate("document.activeElement.getAttribute('role')") == "application"
    desk.page.keyboard.press("Escape")
    assert desk.page.locator("#inspector").is_hidden()


def test_axes_can_be_chosen_and_the_split_of_the_front(desk: Seen) -> None:
    card = desk.page.locator(".plot-card").first
    card.get_by_label("horizontal axis").select_option("robustness")
    assert "robustness" in str(card.locator("svg.plot").get_attribute("aria-label"))
    before = desk.page.locator("#front svg.plot .glyph.winner").first.bounding_box()
    desk.page.locator("#front").get_by_role("button", name="validation").click()
    after = desk.page.locator("#front svg.plot .glyph.winner").first.bounding_box()
    assert before != after
    desk.page.locator("#front").get_by_role("button", name="test", exact=True).click()


def test_a_brush_on_an_axis_keeps_only_its_lines(desk: Seen) -> None:
    words = "#genes [role=status]"
    total = int(desk.text(words).split()[0])
    strip = desk.page.locator("#genes .strip").nth(6)
    strip.scroll_into_view_if_needed()
    box = strip.bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"]
    desk.page.mouse.move(x, y + 8)
    desk.page.mouse.down()
    desk.page.mouse.move(x, y + box["height"] / 2)
    desk.page.mouse.up()
    kept = int(desk.text(words).split()[0])
    assert 0 < kept < total
    assert desk.page.locator("#genes .brush").count() == 1
    desk.page.get_by_role("button", name="Take all filters off").click()
    assert int(desk.text(words).split()[0]) == total


def test_examples_are_filtered_and_searched(desk: Seen, report: Path) -> None:
    found = facts(report.parent)["pairs"]
    fixed = found["counts"]["fixed"]
    desk.page.locator("#examples").get_by_role("button", name=re.compile("^fixed")).click()
    assert desk.page.locator("#examples .pair .state.fixed").count() == min(10, fixed)
    assert desk.page.locator("#examples .pair .state").count() == min(10, fixed)
    desk.page.locator("#examples").get_by_role("button", name=re.compile("^all")).click()
    desk.page.get_by_label("Search examples").fill("test-007")
    shown = desk.page.locator("#examples .pair").all_inner_texts()
    assert len(shown) == 1
    assert "I was charged twice for order 1049" in shown[0]
    assert "sales" in shown[0]
    desk.page.get_by_label("Search examples").fill("")


def test_all_configurations_can_be_sorted_and_searched(desk: Seen) -> None:
    column = "() => [...document.querySelectorAll('.genomes tbody tr')].map(row => row.children[5].textContent)"
    desk.page.locator(".genomes").get_by_role("button", name=re.compile("latency")).click()
    values = [float(text.replace(",", "")) for text in desk.page.evaluate(column)]
    assert values == sorted(values, reverse=True)
    desk.page.locator(".genomes").get_by_role("button", name=re.compile("latency")).click()
    values = [float(text.replace(",", "")) for text in desk.page.evaluate(column)]
    assert values == sorted(values)
    desk.page.get_by_label("Search configurations").fill("model=large")
    rows = desk.page.locator(".genomes tbody tr").all_inner_texts()
    assert rows
    assert all("large" in row for row in rows)
    desk.page.get_by_label("Search configurations").fill("")


def test_changes_are_marked_by_more_than_colour(desk: Seen) -> None:
    added = desk.page.locator("#lineage ins").first
    assert "added:" in str(added.text_content())
    assert "underline" in added.evaluate("one => getComputedStyle(one).textDecorationLine")


def test_a_phone_scrolls_only_downwards(browser: Browser, report: Path) -> None:
    with opened(browser, report, PHONE, touch=True) as seen:
        assert seen.widest() == PHONE[0]
        plot = seen.page.locator("#front svg.plot").first.bounding_box()
        assert plot
        assert plot["width"] <= PHONE[0]
        seen.page.touchscreen.tap(*middle(seen, "#front svg.plot .glyph.winner"))
        assert "recommended" in seen.text("#inspector")
        assert seen.widest() == PHONE[0]
        assert seen.quiet


def test_light_and_dark(browser: Browser, report: Path) -> None:
    def paper(seen: Seen) -> int:
        colour = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(int(part) for part in re.findall(r"\d+", colour)[:3])

    with opened(browser, report, scheme="dark") as seen:
        assert paper(seen) < 150
        seen.page.get_by_role("button", name="Light").click()
        assert paper(seen) > 650
        assert seen.quiet


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours as `rgb(...)`."""

    def light(colour: str) -> float:
        parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_texts_can_be_read(browser: Browser, report: Path, scheme: str) -> None:
    names = [".about", ".tile .from", ".verdict", ".caveats li", ".badge.front", ".badge.recommended", "del", "ins"]
    names += [".scores", ".problem", ".example-head", ".grade", ".muted", ".took", "thead th"]
    script = """names => names.map(name => document.querySelector(name)).filter(Boolean).map(one => {
        let under = one;
        while (getComputedStyle(under).backgroundColor === 'rgba(0, 0, 0, 0)') under = under.parentElement;
        return [one.className || one.tagName, getComputedStyle(one).color, getComputedStyle(under).backgroundColor];
      })"""
    with opened(browser, report, scheme=scheme) as seen:
        found = seen.page.evaluate(script, names)
    assert len(found) >= 10
    poor = {name: contrast(ink, ground) for name, ink, ground in found if contrast(ink, ground) < 4.5}
    assert not poor


def test_controls_have_names(desk: Seen) -> None:
    nameless = desk.page.evaluate(
        """() => [...document.querySelectorAll('button, select, input, [role=region], svg[role]')]
        .filter(one => !one.getAttribute('aria-label') && !one.textContent.trim() && !one.closest('label'))
        .map(one => one.outerHTML.slice(0, 99))"""
    )
    assert nameless == []


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose every text is hostile: prompts, inputs, labels, outputs, reasons, errors, names."""
    turn = iter(range(10**9))
    path = tmp_path_factory.mktemp("hostile") / "run"
    made = Invented(
        path, train=24, validation=24, test=44, say=lambda text: f"{text} {HOSTILE[next(turn) % len(HOSTILE)]}"
    )
    made.search(children=12, block=8)
    members = made.check()
    names = {"versions": {HOSTILE[0]: HOSTILE[1]}, "models": {HOSTILE[1]: HOSTILE[6]}}
    made.finish(members, name=HOSTILE[0] + LONE, status=HOSTILE[1], stop_reason=HOSTILE[2], error=HOSTILE[6], **names)
    lines = (path / "examples.jsonl").read_text().splitlines()
    first = {**json.loads(lines[0]), "input": LONE}
    others = [json.loads(line) for line in lines[1:]]
    for at, one in enumerate(others):
        if one["split"] == "test":
            one["input"] = {"text": LONE if at % 5 == 0 else HOSTILE[at % len(HOSTILE)]}
            one["expected"] = HOSTILE[at % len(HOSTILE)]
    (path / "examples.jsonl").write_text("\n".join(json.dumps(one) for one in (first, *others)) + "\n")
    (path / "config.yaml").write_text("\n".join(HOSTILE), encoding="utf-8")
    twisted = [_twist(json.loads(line)) for line in (path / "genomes.jsonl").read_text().splitlines()]
    (path / "genomes.jsonl").write_text("\n".join(json.dumps(one) for one in twisted) + "\n")
    page.write(facts(path), path / "report.html")
    return path / "report.html"


def _twist(line: dict[str, Any]) -> dict[str, Any]:
    """Hostile names of genes, too."""
    genes = {**line["genes"], HOSTILE[0]: HOSTILE[1], "__proto__": LONE, "constructor": line["genes"]["cot"]}
    return {**line, "genes": genes}


def test_no_text_becomes_markup_or_script(browser: Browser, hostile: Path) -> None:
    raw = hostile.read_text(encoding="utf-8")
    assert raw.count("<script") == 2
    assert "<img" not in raw
    assert not re.search("[\u2028\u2029\u0000]", raw)
    with opened(browser, hostile) as seen:
        assert seen.page.locator(".badge.recommended").count() > 1
        assert seen.page.locator("script").count() == 2
        assert seen.page.locator("img, iframe, object, embed, b:has(> b)").count() == 0
        assert seen.page.evaluate(
            "[...document.querySelectorAll('a')].every(one => one.getAttribute('href')[0] === '#')"
        )
        for summary in seen.page.locator("summary").all():
            summary.click()
        seen.page.locator(".genomes tbody tr").nth(1).click()
        seen.page.mouse.move(300, 400)
        assert seen.quiet, (seen.dialogs, seen.errors, seen.requests)
        assert seen.widest() == 1280


def test_hostile_texts_are_shown_as_they_are(browser: Browser, hostile: Path) -> None:
    with opened(browser, hostile) as seen:
        seen.page.locator("#examples").get_by_role("button", name=re.compile("^all")).click()
        while (more := seen.page.locator("#examples").get_by_role("button", name=re.compile("Show more"))).count():
            more.click()
        shown = seen.page.locator("#examples").inner_text()
        for text in (*HOSTILE[:5], HOSTILE[8], HOSTILE[10]):
            assert text in shown, text
        assert "nul ␀ bell ␇" in shown
        assert "right ⟨U+202E⟩to left⟨U+202C⟩" in shown
        assert "line⟨U+2028⟩and⟨U+2029⟩paragraph" in shown
        assert "lone ⟨U+D800⟩ half" in shown
        whole = seen.page.evaluate(
            "document.documentElement.textContent.replace(document.getElementById('facts').textContent, '')"
        )
        assert not re.search("[\u202a-\u202e\u2066-\u2069\u0000]", whole.split('"use strict"')[0])
        assert seen.text("#summary-title").startswith(HOSTILE[0])


def test_an_interrupted_run_without_a_choice_and_values_that_were_not_finite(
    browser: Browser, report: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(report.parent, run)
    front = json.loads((run / "front.json").read_text())
    for member in (front["start"], *front["members"]):
        member.update(recommended=False, why="", validation={}, test={}, gap={})
        member["train"]["latency_ms"] = {"value": None, "low": None, "high": None}
        member["train"]["cost_usd"]["high"] = None
    (run / "front.json").write_text(json.dumps(front))
    edited(run, status="interrupted", stop_reason=None)
    page.write(facts(run), run / "report.html")
    with opened(browser, run / "report.html") as seen:
        assert "leads so far" in seen.text(".lead")
        assert "evocluster resume" in seen.text(".caveats")
        assert seen.page.locator("#front svg.plot .glyph.front").count() > 0
        assert seen.quiet, seen.errors


def test_a_run_of_one_genome_and_one_objective(browser: Browser, tmp_path: Path) -> None:
    made = Invented(tmp_path / "run")
    made.search(children=0, seeds=0)
    run = made.finish(status="running", objectives=["quality"])
    page.write(facts(run), run / "report.html")
    with opened(browser, run / "report.html") as seen:
        assert "0.39" in seen.text(".tile")
        assert seen.quiet, seen.errors


def test_several_tasks_stand_side_by_side(browser: Browser, tmp_path: Path) -> None:
    made = Invented(tmp_path / "run").search(children=6)
    run = made.finish(made.check(members=2))
    front = json.loads((run / "front.json").read_text())
    for member in (front["start"], *front["members"]):
        member["tasks"] = {"mail": {"test": member["test"]}, "chat": {"test": member["validation"]}}
    (run / "front.json").write_text(json.dumps(front))
    page.write(facts(run), run / "report.html")
    with opened(browser, run / "report.html") as seen:
        rows = seen.page.locator("#tasks tbody tr").all_inner_texts()
        assert len(rows) == 4
        assert rows[0].startswith("mail")
        assert f"{front['start']['validation']['quality']['value']:.2f}" in rows[2]
        assert seen.quiet, seen.errors


def test_hostile_texts_on_a_phone(browser: Browser, hostile: Path) -> None:
    with opened(browser, hostile, PHONE) as seen:
        assert seen.widest() == PHONE[0]
        assert seen.quiet


def test_the_policy_forbids_what_a_bug_would_let_in(browser: Browser, report: Path) -> None:
    with opened(browser, report) as seen:
        seen.page.evaluate(
            """() => { const one = document.createElement('script'), two = document.createElement('img');
            one.textContent = 'window.broken = 1'; two.src = 'https://127.0.0.1:9/x.png';
            document.body.setAttribute('onclick', 'window.broken = 2');
            document.body.append(one, two); document.body.click(); }"""
        )
        seen.page.wait_for_timeout(100)
        assert seen.page.evaluate("window.broken") is None
        refused = [error for error in seen.errors if "Content Security Policy" in error]
        assert [sum(kind in error for error in refused) for kind in ("inline script", "event handler", "image")] == [
            1,
            1,
            1,
        ]


def test_the_headline_says_what_the_recommended_is_honestly_worth(browser: Browser, tmp_path: Path) -> None:
    run = invent(tmp_path / "run", train=24, validation=24, test=44)
    front = json.loads((run / "front.json").read_text())
    best = next(member for member in front["members"] if member["recommended"])
    best["honest"] = {"quality": {"value": 0.52, "low": 0.4, "high": 0.63, "folds": 10, "split": "validation"}}
    best["honest_gap"] = {"quality": {"value": -0.04, "low": -0.2, "high": 0.12}}
    front["versus_start"] = {"quality": {"difference": 0.17, "low": 0.05, "high": 0.28, "p": 0.0001, "n": 44}}
    older = (run / "front.json").read_text()
    for text, shown in ((json.dumps(front), True), (older, False)):
        (run / "front.json").write_text(text)
        page.write(facts(run), tmp_path / "report.html")
        with opened(browser, tmp_path / "report.html") as seen:
            assert seen.page.locator(".honest").count() == shown
            if shown:
                said = seen.text(".honest")
                assert "gap to test -0.04 [-0.20..+0.12]" in said
                assert "against the start, p < 0.001 (44 examples)" in said
            assert seen.quiet
