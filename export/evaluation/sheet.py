"""A contact sheet of the pictures that were most confidently wrong, each with what it was called and what it is."""

import io
from collections.abc import Iterable, Sequence

from PIL import Image, ImageDraw, ImageFont

from export.evaluation.findings import Mistake

_COLUMNS = 5
_SIDE = 144
_LINE = 15
_GAP = 8
_SIZE = 12
_WHITE, _BLACK, _RED = (255, 255, 255), (0, 0, 0), (170, 0, 0)


def contact_sheet(pictures: Iterable[Image.Image], mistakes: Sequence[Mistake]) -> bytes:
    """PNG, in reading order: the most confident first; label given and its score in red, the true one under it.

    Pictures are drawn one at a time.
    """
    rows = max(1, -(-len(mistakes) // _COLUMNS))
    cell = (_SIDE + _GAP, _SIDE + 3 * _LINE + _GAP)
    sheet = Image.new("RGB", (_COLUMNS * cell[0] + _GAP, rows * cell[1] + _GAP), _WHITE)
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_SIZE)
    if not mistakes:
        draw.text((_GAP, _GAP), "No picture got a wrong label.", _BLACK, font)
    for number, (picture, mistake) in enumerate(zip(pictures, mistakes, strict=True)):
        left = _GAP + number % _COLUMNS * cell[0]
        top = _GAP + number // _COLUMNS * cell[1]
        tile = _fitted(picture)
        sheet.paste(tile, (left + (_SIDE - tile.width) // 2, top + (_SIDE - tile.height) // 2))
        score = f"{mistake.score:.3f} "
        for line, (text, colour) in enumerate(
            ((score + mistake.given, _RED), (f"is {mistake.label}", _BLACK), (mistake.picture, _BLACK))
        ):
            place = (left, top + _SIDE + line * _LINE)
            draw.text(place, _shortened(text, draw, font, from_left=line == 2), colour, font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _fitted(picture: Image.Image) -> Image.Image:
    """Its longer side is that of a tile; a small picture keeps its pixels as squares."""
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.resize(size, Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BICUBIC)


def _shortened(
    text: str, draw: ImageDraw.ImageDraw, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, *, from_left: bool
) -> str:
    """What fits beneath a tile: of a path the end, of a label the beginning."""
    cut = text
    while draw.textlength(text, font) > _SIDE and len(cut) > 1:
        cut = cut[1:] if from_left else cut[:-1]
        text = f"…{cut}" if from_left else f"{cut}…"
    return text
