"""A result in a notebook: whole, escaped, well-formed, also where little was measured."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pandas
import pytest
from two_runs import ASKED, PLAIN, finished

from evocluster.report.compare import compare
from evocluster.report.inline import Axis, front_svg
from evocluster.report.result import Compared, Result
from evocluster.report.side import choose

WILD = "<script>alert('x')</script>\u202e &amp; \"quoted\" <img src=x onerror=y>"
SVG = "{http://www.w3.org/2000/svg}"
VOID = ("br",)


class Page(HTMLParser):
    """Text and tags of a piece of HTML; every tag that opens closes, in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Result:
    """A finished run that found something better than its start."""
    result = finished(tmp_path_factory.mktemp("run"), PLAIN, budget={"generations": 6})
    assert len(result.members) >= 2
    return result


def interval(value: float | None) -> dict[str, float | None]:
    return {
        "value": value,
        "low": None if value is None else value * 0.9,
        "high": None if value is None else value * 1.1,
    }


def member(number: int, values: dict[str, float | None], **more: Any) -> dict[str, Any]:
    measured = {name: interval(value) for name, value in values.items()}
    genes = {"rubric": f"rubric {number}", "demos": []}
    return {"genome": f"{number:016x}"[::-1], "genes": genes, "recommended": False, "why": "", "test": measured, **more}


def made(folder: Path, members: list[dict[str, Any]], start: dict[str, Any] | None = None, **run: Any) -> Result:
    """A run folder with this front."""
    names = list((members[0]["test"] if members else {"quality": 1}).keys())
    (folder / "front.json").write_text(json.dumps({"objectives": names, "start": start, "members": members}))
    (folder / "run.json").write_text(json.dumps({"status": "finished", **run}))
    return Result(folder)


def test_a_result_shows_headline_table_and_picture(run: Result) -> None:
    page = Page(run._repr_html_())
    assert run.start is not None
    assert run.recommended is not None
    assert page.text.startswith("small : finished by generations · quality")
    assert "on test (60 examples)" in page.text
    for one in (run.start, *run.members):
        assert one["genome"][:8] in page.text
    assert "quality latency USD per 1M robustness gap configuration" in page.text
    assert "★" in page.text
    assert f"recommended: {run.recommended['why']}" in page.text
    assert {tag for tag, _ in page.tags} >= {"table", "svg", "circle"}
    assert not {tag for tag, _ in page.tags} & {"script", "style", "link", "img"}
    assert repr(run).startswith("Result("), "and a line where there is no HTML"


def test_the_picture_places_every_configuration(run: Result) -> None:
    svg = ElementTree.fromstring(front_svg(run))
    groups = svg.findall(f"{SVG}g")
    shown = {(run.start or {})["genome"], *(one["genome"] for one in run.members)}
    titles = [group.findtext(f"{SVG}title") or "" for group in groups]
    assert {title[:8] for title in titles} == {genome[:8] for genome in shown}
    assert any("start" in title for title in titles)
    assert any("recommended" in title for title in titles)
    places = {}
    for group, title in zip(groups, titles, strict=True):
        circle = group.find(f"{SVG}circle")
        assert circle is not None
        quality, cost = (
            float(found[1])
            for found in (re.search(r"quality ([\d.]+)", title), re.search(r"1M ([\d.]+)", title))
            if found
        )
        places[quality, cost] = (float(circle.get("cx", "")), float(circle.get("cy", "")))
    for (quality, cost), (x, y) in places.items():
        for (other_quality, other_cost), (other_x, other_y) in places.items():
            assert quality <= other_quality or y < other_y, "better is higher"
            assert cost <= other_cost or x > other_x, "dearer is further right"
    words = [text.text for text in svg.findall(f"{SVG}text")]
    assert "USD per 1M, less is better" in words
    assert "quality, more is better" in words


def test_colours_are_the_notebooks_own(run: Result) -> None:
    html = run._repr_html_()
    assert "currentColor" in html
    assert "background" not in html
    assert set(re.findall(r"#[0-9a-f]{6}", html)) <= {"#e8590c", "#1c7ed6"}
    for colour in ("e8590c", "1c7ed6"):
        channels = [int(colour[at : at + 2], 16) / 255 for at in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
        assert 1.05 / (light + 0.05) >= 3, "on white"
        assert (light + 0.05) / 0.06 >= 3, "on a dark ground"


def test_texts_are_inert(tmp_path: Path) -> None:
    genes = {"rubric": WILD, WILD: "x"}
    values: dict[str, float | None] = {WILD: 0.5, "quality": 0.0}
    one = member(1, values, genes=genes, recommended=True, why=WILD, train={"quality": interval(0.0)})
    result = made(
        tmp_path, [one], member(2, values, train={"quality": interval(0.0)}), name=WILD, stop_reason=WILD, error=WILD
    )
    page = Page(result._repr_html_())
    assert not {tag for tag, _ in page.tags} & {"script", "img"}
    assert WILD.replace("\u202e", "") in page.text.replace("\u202e", "")
    assert page.text.count("alert('x')") >= 6
    assert all("bdi" in (tag, "bdi") and not any(name.startswith("on") for name in attrs) for tag, attrs in page.tags)
    inside = re.findall(r"<bdi>[^<]*\u202e[^<]*</bdi>", result._repr_html_())
    assert len(inside) >= 5, "what turns the direction of writing stays in its place"


def test_without_a_front_there_is_only_the_headline(tmp_path: Path) -> None:
    page = Page(made(tmp_path, [], status="running", evaluations=3)._repr_html_())
    assert "running" in page.text
    assert "3 evaluations, 0 calls" in page.text
    assert not {tag for tag, _ in page.tags} & {"table", "svg"}


def test_what_was_not_measured_is_left_out_of_the_picture(tmp_path: Path) -> None:
    values: list[dict[str, float | None]] = [
        {"quality": 0.5, "latency_ms": 10.0},
        {"quality": 0.6, "latency_ms": None},
        {"quality": 0.5, "latency_ms": 0.0},
    ]
    result = made(tmp_path, [member(number, value) for number, value in enumerate(values, 1)])
    svg = ElementTree.fromstring(front_svg(result))
    assert len(svg.findall(f".//{SVG}circle")) == 2
    page = Page(result._repr_html_())
    assert "latency (ms), less is better" in page.text
    assert "nan" not in page.text


def test_one_objective_makes_no_picture(tmp_path: Path) -> None:
    assert front_svg(made(tmp_path, [member(1, {"quality": 0.5})])) == ""


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.2], False), ([0.0], False), ([-3.0, 4.0], False), ([1e-6, 9e-6], False), ([1e-6, 1e-3], True)],
)
def test_axes_have_round_ticks_inside(values: list[float], log: bool) -> None:
    axis = Axis("cost_usd", values, 60.0, 500.0)
    assert axis.log == log
    places = [axis.at(tick) for tick in axis.ticks]
    assert 2 <= len(places) <= 10
    assert places == sorted(set(places))
    assert all(60 <= place <= 500 for place in places)
    assert all(60 < axis.at(value) < 500 for value in values)


def test_the_table_is_the_front(run: Result) -> None:
    rows = run.table()
    assert run.start is not None
    assert rows[0]["genome"] == run.start["genome"]
    assert sum("recommended" in row["role"] for row in rows) == 1
    assert rows[0]["quality"] == run.start["test"]["quality"]["value"]
    assert rows[0]["latency_ms_high"] == run.start["test"]["latency_ms"]["high"]
    assert rows[0]["genes"] == run.start["genes"]
    frame = run.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame["quality"]) == [row["quality"] for row in rows]
    assert frame["genes.rubric"][0] == PLAIN["rubric"]


def test_evaluations_are_the_rows_of_the_trials_table(run: Result) -> None:
    table = pandas.read_parquet(run.path / "trials")
    rows = list(run.evaluations())
    assert len(rows) == int((table.kind == "evaluation").sum()) > 0
    assert rows[0]["scores"] == {"label": {"value": rows[0]["quality"], "reason": rows[0]["scores"]["label"]["reason"]}}
    assert pandas.DataFrame(run.evaluations())["latency_ms"].mean() == pytest.approx(
        table[table.kind == "evaluation"].latency_ms.mean()
    )


def test_a_run_that_has_evaluated_nothing_yields_nothing(tmp_path: Path) -> None:
    assert list(made(tmp_path, []).evaluations()) == []
    assert made(tmp_path, []).table() == []


def test_a_comparison_shows_what_it_means(run: Result, tmp_path: Path) -> None:
    other = finished(tmp_path, ASKED)
    found = Compared(*compare(choose(run, "start"), choose(other, "start")))
    page = Page(found._repr_html_())
    assert "B is better by 0.25 [" in page.text
    assert "15 fixed, 0 broken, 0 changed, 45 with the same output; genes that differ: rubric" in page.text
    inside = Page(run.compare()._repr_html_())
    assert "A = start" in inside.text
    assert "recommended" in inside.text
    assert repr(run.compare()).count("\n") >= 4
    assert len(repr(run.compare())) < 2000, "not the rows behind it"
