"""Charts: the numbers beside them are those drawn, and the markup is fit for a page with others of its kind."""

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest

from tokensqueeze.reporting.charts import Chart, Histogram, Line, histogram_chart, line_chart


def budget_chart(name: str = "budget") -> Chart:
    lines = [
        Line("base", [0, 100, 200], [0.0, 0.5, 0.8], "base"),
        Line("squeezed", [0, 100, 200], [0.0, 0.9, None], "squeezed"),
    ]
    return line_chart(name, "Accuracy & <budget>", lines, x_label="tokens", percent=True)


def test_the_table_of_a_line_chart_holds_its_points() -> None:
    chart = budget_chart()
    assert chart.headers == ("tokens", "base", "squeezed")
    assert chart.rows == ((0, 0.0, 0.0), (100, 0.5, 0.9), (200, 0.8, None))


def test_draws_each_point_where_its_numbers_say() -> None:
    chart = line_chart("line", "Line", [Line("a", [0, 50, 100], [0.0, 0.25, 1.0], "third")], x_label="x", percent=True)
    path = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--third\)', chart.svg)
    assert path is not None
    (x0, y0), (x1, y1), (x2, y2) = [tuple(map(float, pair)) for pair in re.findall(r"([\d.]+) ([\d.]+)", path[1])]
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.5, abs=0.001)
    assert (y0 - y1) / (y0 - y2) == pytest.approx(0.25, abs=0.001)


def test_shares_of_a_histogram_add_up_to_one_with_outliers_in_the_end_bins() -> None:
    kls = [Histogram("kl", [1e-9, 1e-3, 1e-3, 5.0], "squeezed")]
    chart = histogram_chart("h", "H", kls, x_label="x", y_label="y", log=True, limits=(1e-4, 1e-2))
    shares = [row[1] for row in chart.rows]
    assert shares == [0.25, 0.5, 0.25]


def test_whole_numbers_get_bins_of_one_whole_width() -> None:
    chart = histogram_chart("h", "H", [Histogram("n", list(range(1, 101)), "base")], x_label="x", y_label="y", bins=20)
    assert [row[1] for row in chart.rows] == [0.05] * 20


def test_equal_values_are_drawn_as_one_bar() -> None:
    chart = histogram_chart("h", "H", [Histogram("n", [7, 7, 7], "base")], x_label="x", y_label="y")
    assert [row[1] for row in chart.rows] == [1.0]


@pytest.mark.filterwarnings("error")
def test_a_mark_beyond_the_axis_does_not_squeeze_the_chart() -> None:
    values, marks = [Histogram("saved", [40, 42, 47], "squeezed")], {"unchanged": 0.0, "median": 42.0}
    chart = histogram_chart("h", "H", values, x_label="x", y_label="y", marks=marks)
    assert ">median</text>" in chart.svg and ">unchanged</text>" not in chart.svg


def test_labels_keep_their_digits() -> None:
    values, marks = [Histogram("n", [0.001, 0.002], "base")], {"0.00512": 0.00512}
    chart = histogram_chart("h", "H", values, x_label="x", y_label="y", log=True, limits=(1e-4, 1e-2), marks=marks)
    assert ">0.00512</text>" in chart.svg


def test_markup_is_well_formed_with_an_escaped_title_and_the_pages_colours() -> None:
    svg = budget_chart().svg
    root = ElementTree.fromstring(svg)
    assert root[0].tag == "title" and root[0].text == "Accuracy & <budget>"
    assert "var(--squeezed)" in svg and "var(--base)" in svg
    assert not re.search(r"#0\d0\d0\d|<style|font-family|http", svg)


def test_two_charts_share_no_ids() -> None:
    first, second = (set(re.findall(r' id="([^"]+)"', budget_chart(name).svg)) for name in ("one", "two"))
    assert first and second and not first & second


def test_the_same_chart_is_the_same_bytes() -> None:
    assert budget_chart().svg == budget_chart().svg


def test_without_matplotlib_the_tables_still_load_and_charts_name_the_install_command() -> None:
    program = """
import sys
sys.modules["matplotlib"] = None
import tokensqueeze.reporting.model_card, tokensqueeze.reporting.summary
from tokensqueeze.errors import MissingPackageError
try:
    import tokensqueeze.reporting.charts
except MissingPackageError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "pip install 'tokensqueeze[run]'" in done.stdout


def test_the_table_of_a_curve_with_a_band_holds_its_edges() -> None:
    lines = [
        Line("base", [0, 100], [0.0, 0.5], "base", band=[None, [0.4, 0.6]]),
        Line("squeezed", [100, 200], [0.9, 1.0], "squeezed", error=[0.1, None]),
    ]
    chart = line_chart("bands", "Bands", lines, x_label="tokens", percent=True)
    assert chart.headers == ("tokens", "base", "low", "high", "squeezed", "±")
    assert chart.rows == (
        (0, 0.0, None, None, None, None),
        (100, 0.5, 0.4, 0.6, 0.9, 0.1),
        (200, None, None, None, 1.0, None),
    )


def test_a_band_is_drawn_between_its_edges_in_the_colour_of_its_curve() -> None:
    line = Line("a", [0, 100], [0.5, 0.5], "blue", band=[[0.25, 0.75], [0.25, 0.75]])
    flat = Line("b", [0, 100], [0.0, 1.0], "ink")
    chart = line_chart("band", "Band", [line, flat], x_label="x", percent=True)
    drawn = re.search(r'<use href="#([^"]+)" x="0" y="(\d+)" style="fill: var\(--blue\); fill-opacity', chart.svg)
    scale = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--ink\)', chart.svg)
    assert drawn is not None and scale is not None
    band = re.search(rf'<path id="{drawn[1]}" d="([^"]+)"', chart.svg)
    assert band is not None
    heights = {float(drawn[2]) + float(y) for _, y in re.findall(r"([\d.-]+) ([\d.-]+)", band[1])}
    bottom, top = (float(y) for _, y in re.findall(r"([\d.]+) ([\d.]+)", scale[1]))
    assert sorted((bottom - y) / (bottom - top) for y in (min(heights), max(heights))) == pytest.approx([0.25, 0.75], abs=0.001)


def test_labels_are_text_whatever_signs_they_have() -> None:
    names = ["a$x^2$", "_under", "n" * 60, "\u6a21\u578b"]
    lines = [Line(name, [0, 1], [0.0, 1.0], "base") for name in names]
    chart = line_chart("labels", "Labels", lines, x_label="x")
    texts = [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg)]
    assert {"a$x^2$", "_under", "n" * 35 + "…", "\u6a21\u578b"} <= set(texts)
    assert chart.headers[1:] == tuple(names)
