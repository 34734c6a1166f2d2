"""The report page: self-contained, small, escaped, and honest about what is missing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from selftaught.core.errors import RunError
from selftaught.report import html, words
from selftaught.report.content import Comparison, by_lot
from selftaught.report.html import (
    Cluster,
    Cost,
    DataSummary,
    FoundObject,
    Health,
    Neighbours,
    NextStep,
    ReportContent,
    render,
    write_report,
)

HOSTILE = "<script>alert(1)</script>"
VOID = {"meta", "link", "img", "br", "source", "use", "path", "rect", "circle"}


class Page(HTMLParser):
    """Collects tags, attributes and visible text, and notes tags that are closed in the wrong order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.open: list[str] = []
        self.wrong: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text += data


def picture(rng: np.random.Generator, height: int = 48, width: int = 64) -> npt.NDArray[np.uint8]:
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def score(value: float, better: str = "higher", **baselines: float) -> dict[str, Any]:
    return {"value": value, "n": 50, "ci95": [value - 0.05, value + 0.05], "better": better, "baselines": baselines}


@pytest.fixture(scope="module")
def content() -> ReportContent:
    rng = np.random.default_rng(0)
    pictures = [picture(rng) for _ in range(40)]
    truth = np.zeros((48, 64), dtype=np.uint8)
    truth[10:30, 20:50] = 1
    objects = [
        FoundObject(pictures[i], rng.random((24, 32)), truth, i / 40, 0.5, HOSTILE if i == 39 else f"a/{i}.jpg")
        for i in range(40)
    ]
    steps = list(range(0, 1000, 10))
    return ReportContent(
        title=f"Title {HOSTILE}",
        learned="It learned something. & <b>more</b>",
        objects=objects,
        neighbours=[Neighbours(pictures[0], [(p, 0.9) for p in pictures[1:9]]) for _ in range(4)],
        embedding_2d=rng.normal(size=(60, 2)),
        thumbnails=pictures,
        clusters=[Cluster(7, pictures[:7], 0.8), Cluster(3, pictures[:3], None)],
        curves={"features": {"loss": (steps, [5 - s / 300 for s in steps]), f"$x_{{{HOSTILE}": (steps, steps)}},
        health=[Health("features", "learning", f"fine {HOSTILE}"), Health("masks", "collapsing", "flat")],
        scores={"iou": score(0.43, centre_box=0.28, whole=0.3), "mae": score(0.2, "lower", centre_box=0.21)},
        data_summary=DataSummary({"pictures": 1234}, [(f"{HOSTILE}.png", "cut short"), ("x\u202egpj.\udcff", "no")]),
        cost=Cost({"features": 200.0, "masks": 31.0}, 2.3, "2 cores", {"torch": "2.13"}),
        how_to_go_on=[NextStep(f"selftaught learn '{HOSTILE}'", "Goes on.")],
    )


@pytest.fixture(scope="module")
def rendered(content: ReportContent) -> str:
    return render(content).decode("utf-8")


def test_page_is_small_complete_and_well_formed(content: ReportContent, tmp_path: Path) -> None:
    path = write_report(tmp_path, content)
    assert path == tmp_path / "report.html"
    assert path.stat().st_size < 5_000_000
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.wrong == [] and page.open == []
    for heading in ("Objects found", "Pictures the machine finds alike", "A map of your pictures", "Scores"):
        assert heading in page.text
    for part in ("Best", "Median", "Worst", "Random, not chosen", "1,234", "3 min 51 s", "0.43", "± 0.05"):
        assert part in page.text


def test_nothing_is_loaded_from_outside(rendered: str) -> None:
    assert "http://" not in rendered and "https://" not in rendered and "@import" not in rendered
    for tag, attributes in Page(rendered).tags:
        assert tag not in ("script", "iframe", "object", "embed", "base", "form")
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "srcset", "xlink:href"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, str(value)[:60])
    for target in re.findall(r"url\(([^)]*)\)", rendered):
        assert target.startswith("#")


def test_hostile_names_are_escaped(rendered: str) -> None:
    assert HOSTILE not in rendered and "<b>more</b>" not in rendered
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in rendered
    assert "\u202e" not in rendered and "\\u202e" in rendered and "\\udcff" in rendered


def test_every_picture_has_a_text(rendered: str) -> None:
    page = Page(rendered)
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    assert len(images) > 30
    assert all(attributes.get("alt") for attributes in images)
    drawn = [attributes for tag, attributes in page.tags if tag == "svg"]
    assert len(drawn) == 2 and all(attributes.get("aria-label") for attributes in drawn)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_empty_parts_say_why() -> None:
    page = Page(
        render(ReportContent("Empty", "Nothing yet.", why_empty={"map": "Only 2 pictures <were> there."})).decode()
    )
    assert "No truth found, so nothing was scored." in page.text
    assert "No objects to show" in page.text and "No curves to show" in page.text
    assert "Only 2 pictures <were> there." in page.text
    headings = [tag for tag, _ in page.tags if tag == "h2"]
    assert len(headings) == 9


def test_without_truth_pictures_are_ordered_by_confidence(content: ReportContent) -> None:
    objects = [item._replace(truth=None, iou=None, confidence=index / 40) for index, item in enumerate(content.objects)]
    page = Page(render(ReportContent("No truth", "Learned.", objects=objects)).decode())
    assert "No truth was found with these pictures" in page.text
    assert "Most sure" in page.text and "confidence 0.97" in page.text and "overlap 0" not in page.text
    assert "true outline" not in page.text


def test_few_pictures_are_all_shown_once(content: ReportContent) -> None:
    page = Page(render(ReportContent("Few", "Learned.", objects=content.objects[:5])).decode())
    assert len([tag for tag, _ in page.tags if tag == "img"]) == 5
    assert "Best" not in page.text


def test_page_shrinks_its_pictures_until_it_fits(content: ReportContent, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ReportContent("Small", "Learned.", objects=content.objects[:4])
    full = len(render(small))
    monkeypatch.setattr(html, "MAX_BYTES", int(0.6 * full))
    assert len(render(small)) < 0.6 * full
    monkeypatch.setattr(html, "MAX_BYTES", 1000)
    with pytest.raises(RunError, match="does not fit"):
        render(small)


def test_odd_figures_do_not_break_the_page() -> None:
    nan = float("nan")
    scores: dict[str, dict[str, Any]] = {
        "iou": {"value": nan, "n": 0, "ci95": [nan, nan], "better": "higher", "baselines": {"box": nan}},
        "none": {"value": None, "n": 0, "ci95": None, "better": "lower", "baselines": {}},
        "uniformity": score(-2.5, "lower", pixels=-1.0),
    }
    curves = {"a": {"loss": ([0, 1, 2], [nan, nan, nan]), "one": ([5], [1.0]), "gap": ([0, 1, 2], [1.0, nan, 2.0])}}
    text = Page(render(ReportContent("Odd", "x", scores=scores, curves=curves)).decode()).text
    assert "not a number" in text and "no finite value" in text and "1 not finite" in text
    assert "Better by 1.50 than the best baseline (pixels, \u22121.00)." in text


def test_same_content_gives_the_same_page(content: ReportContent, rendered: str) -> None:
    assert render(content).decode("utf-8") == rendered


def test_two_ways_are_shown_on_pictures_drawn_by_lot(content: ReportContent, rendered: str, tmp_path: Path) -> None:
    assert "Two ways" not in rendered and "#ways" not in rendered, "there was one way"
    lot = by_lot(len(content.objects))
    assert len(lot) == 12 == len(set(lot)) and lot == sorted(lot) and by_lot(3) == [0, 1, 2]
    shown = [content.objects[i] for i in lot]
    found = Comparison(
        {"the cut": [np.eye(7)] * 12, f"MOVE {HOSTILE}": [item.mask for item in shown]},
        [np.full((9, 9, 3), 10 * k, np.uint8) for k in range(12)], "move", "more stable", 256,
        [("Stability", f"Meaning {HOSTILE}", {"value": 0.7, "ci95": [0.6, 0.8]}, {"value": 0.9, "ci95": [0.85, 0.95]})],
        {"cut": 0.412, "move": 0.503},
    )  # fmt: skip
    path = write_report(tmp_path, replace(content, comparison=found))
    page = Page(path.read_text(encoding="utf-8"))
    assert page.wrong == [] and page.open == [] and HOSTILE not in path.read_text(encoding="utf-8")
    for text in ("Two ways to find objects", "0.700", "± 0.100", "± 0.050", "0.412", "0.503", "learned from MOVE (more stable)."):
        assert text in page.text, text
    images = [str(attributes["alt"]) for tag, attributes in page.tags if tag == "img"]
    images = [alt for alt in images if alt.endswith(": object moved")]
    assert images == [f"{words.plain(item.key)}: object moved" for item in shown]
    without = Page(render(replace(content, comparison=found._replace(truth={}))).decode())
    assert "Overlap with the truth" not in without.text.partition("Two ways")[2].partition("Pictures the machine")[0]


def test_a_check_of_the_data_is_no_failure_of_the_run() -> None:
    """It was told in red to be worse than its best baseline, though a low one is what is hoped for."""
    shown = render(ReportContent("t", "l", scores={"leak_7x7": score(0.3, "lower", whole_picture=0.2)})).decode()
    assert "This was measured on the data alone" in shown and "Worse by" not in shown and ">whole picture<" in shown


def test_trouble_is_named_where_there_was_some() -> None:
    for verdict, told in (("learning", False), ("diverging", True)):
        curves = {"features": {"loss": ([0.0, 1.0], [2.0, 1.0]), "health": ([0.0, 1.0], [verdict, "learning"])}}
        assert ("Shaded stretches" in render(ReportContent("t", "l", curves=curves)).decode()) == told


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (0.4312, "0.43"),
        (-0.001, "\u22120.001"),
        (12.34, "12.3"),
        (1234.5, "1,234"),
        (0.0, "0.00"),
        (7.3e-5, "7.3e\u221205"),
    ],
)
def test_numbers_for_reading(value: float, shown: str) -> None:
    assert words.number(value) == shown


def test_intervals_share_one_precision() -> None:
    assert words.with_interval(0.4312, 0.40, 0.46) == ("0.43", "± 0.03", "0.40 to 0.46")
    assert words.with_interval(0.9871, 0.9851, 0.9891) == ("0.987", "± 0.002", "0.985 to 0.989")
    assert words.with_interval(74.2, 71.1, 77.3) == ("74.2", "± 3.1", "71.1 to 77.3")


def test_comparison_with_baselines() -> None:
    assert words.against_baselines(0.43, (0.40, 0.46), "higher", {"a": 0.3, "b": 0.2})[1] == "good"
    assert words.against_baselines(0.43, (0.40, 0.46), "higher", {"a": 0.41})[1] == "unclear"
    assert words.against_baselines(0.43, (0.40, 0.46), "lower", {"a": 0.3})[1] == "bad"
    assert words.against_baselines(0.43, (0.40, 0.46), "lower", {}) == ("", "")


@pytest.mark.parametrize(
    ("name", "heading"),
    [
        ("features.knn_20", "Nearest-neighbour accuracy"),
        ("knn_accuracy", "Nearest-neighbour accuracy"),
        ("objects/iou", "Overlap with the true object (IoU)"),
        ("ap", "Average precision"),
        ("mae", "Mean error of the mask"),
        ("max_f", "F-measure at the best threshold"),
        ("accuracy", "Pixels judged right"),
        ("mystery_figure", "mystery figure"),
        ("leak_7x7", "Do the edges of objects give them away?"),
    ],
)
def test_scores_have_plain_names(name: str, heading: str) -> None:
    assert words.meaning(name)[0] == heading
