"""What pages hold."""

import base64
import io

import jinja2
import pytest
from PIL import Image

from llmreg.pages import create_environment, data_url, style_sheet


def test_a_picture_stands_in_the_page_itself():
    stream = io.BytesIO()
    Image.new("RGB", (3, 2), (10, 20, 30)).save(stream, "png")
    head, _, content = data_url(stream.getvalue(), "png").partition(",")
    assert head == "data:image/png;base64"
    picture = Image.open(io.BytesIO(base64.b64decode(content)))
    assert (picture.size, picture.getpixel((2, 1))) == ((3, 2), (10, 20, 30))


def test_the_style_sheet_needs_nothing_from_elsewhere():
    sheet = style_sheet()
    assert sheet.count("{") == sheet.count("}") > 0
    assert "url(" not in sheet
    assert "@import" not in sheet


def test_templates_escape_values_and_refuse_missing_ones():
    environment = create_environment("llmreg.report")
    assert environment.from_string("<p>{{ name }}</p>").render(name="<b>") == "<p>&lt;b&gt;</p>"
    with pytest.raises(jinja2.UndefinedError):
        environment.from_string("{{ name }}").render()
    assert environment.get_template("report.html")
