"""What pages hold."""

import base64
import io

from PIL import Image

from llmreg.pages import data_url, style_sheet


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
