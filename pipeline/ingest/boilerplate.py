"""Alt texts that tell of the file, the page or the camera, and not of the picture. In linear time (RE2)."""

from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

_ENDING: Final = r"(?i)\.(?:jpe?g|png|gif|webp|bmp|tiff?|svg|heic|avif|cr2|nef|psd)\s*$"
_FILE_NAME: Final = r"^[\pL\pN_\s.,()+=@%&~#'\[\]-]{0,160}$"
"""Asked of texts with the ending only: Unicode classes in one large pattern cost 25 times the rest of it."""
_DEVICES: Final = (
    "img|image|imag|dsc|dscn|dscf|dscn|pict|pic|photo|foto|p|mvi|vid|wp|pano|gopr|sam|cimg|hpim|kif|imgp|pxl",
    "screenshot|screen shot|bildschirmfoto|captura de pantalla|capture d.écran|снимок экрана|スクリーンショット",
    "whatsapp image|signal",
)
_CAMERA: Final = (
    rf"(?:{'|'.join(_DEVICES)})[ _-]?\(?\d{{3,}}[\d _.:()-]*(?:at|um|à|a las)?[\d _.:()-]*(?:am|pm)?(?:[_-]\w{{1,6}})?"
)
_NAMES_OF_NOTHING: Final = (
    "image|images|img|photo|photos|picture|pic|foto|fotos|bild|imagen|imagem|immagine|изображение|фото|картинка",
    "画像|图片|圖片|이미지|사진|صورة|تصویر|gambar|resim|görsel",
    "untitled|unnamed|unknown|sans titre|ohne titel|sin título|sem título|senza titolo",
    "без названия|無題|无标题|제목 없음",
    "logo|icon|banner|header|thumbnail|thumb|avatar|placeholder|spacer|default|blank|loading|loader|preview|slide|alt",
    "featured image|profile picture|no image|no photo|missing image|image not found|alt text|post image",
    "article image|product image",
    "cover image|main image|hero image|blog image|image description|image placeholder|image preview",
)
_WHOLE: Final = (
    rf"{_CAMERA}|{'|'.join(_NAMES_OF_NOTHING)}",
    r"(?:image|photo|picture|slide|figure|bild|imagen|foto) \d+ (?:of|/|von|de|di|из) \d+",
    r"(?:image|photo|picture|slide|bild|imagen|foto|thumbnail|gallery image|product image)[ #_-]{0,2}\d{1,4}",
    r"(?:share|pin|tweet|follow us|find us|like us|join us|save)(?: this| it)? (?:on|to|via) (?:facebook|twitter"
    r"|pinterest|instagram|x|whatsapp|linkedin|email|reddit|telegram)",
    r"(?:facebook|twitter|instagram|youtube|pinterest|linkedin|rss|whatsapp)(?: social)? (?:icon|logo|button|link)",
    r"(?:read|learn|see|find out|show|load) more(?: \W{1,3})?|add to cart|buy now|shop now|sign up|log in",
    r"zoom (?:in|out)|open media \d+ in (?:modal|gallery view)",
    "next|previous|back to top|skip to content|close|menu|search|advertisement|sponsored",
)
"""The text is nothing else."""
_PHRASES: Final = (
    r"\b(?:click|tap|hover|touch)(?: on)?(?: here| the| this| image| photo| picture| thumbnail| it){0,4}"
    r" (?:to|for)(?: see| view| a){0,2} ?(?:enlarge|zoom|expand|larger|full|bigger|high|open|view|details)",
    r"\bclick here\b|\b(?:view|see|show) (?:larger|full[ -]?size|bigger) (?:image|picture|photo|version)",
    r"\benlarge (?:this |the )?(?:image|photo|picture)\b",
    r"\b(?:no|missing) (?:image|photo|picture)(?: is)? (?:available|found|yet)\b|\bimage coming soon\b",
    r"\bimage (?:not|un)[ -]?available\b|\bimage (?:may contain|could not be loaded)\b|\bplaceholder image\b",
    r"\bcliqu(?:ez|er)(?: ici)?(?: sur)?.{0,25}(?:agrandir|zoomer)|\bcliquez ici\b|\bagrandir l.image\b",
    r"\bvergrö(?:ß|ss)er\w* .{0,25}(?:klick|bild)|klick\w*.{0,30}(?:vergrö(?:ß|ss)|größer)|\bbild vergrö(?:ß|ss)ern\b",
    r"\b(?:clic|click|pulse|pulsa|pincha)\b.{0,30}\b(?:ampliar|agrandar)|\bcli(?:que|car)\b.{0,25}ampliar",
    r"\bclicca(?:re)?\b.{0,25}ingrandi|(?:нажмите|нажать|кликните|щ[её]лкните).{0,40}увелич",
    "点击.{0,6}(?:放大|大图)|點擊.{0,6}(?:放大|大圖)|クリック.{0,6}拡大|拡大画像|클릭.{0,8}확대",
    r"büyütmek için|\bklik\w*.{0,25}(?:perbesar|vergro|powi)",
    "(?:اضغط|انقر).{0,20}تكبير|برای بزرگ.{0,6} کلیک",
)
"""The text holds it."""
_PATTERN: Final = rf"(?i)^\s*(?:{'|'.join(_WHOLE)})[\s.:…!]*$|{'|'.join(_PHRASES)}"


def has_boilerplate(text: pa.Array) -> pa.Array:
    """A file's or a camera's name, a word that says no more than "image", or the page's own words to a reader
    ("click to enlarge", "Image 3 of 7", "no image available"), in a dozen languages."""
    file_like = pc.match_substring_regex(text, pattern=_ENDING)
    named = pc.match_substring_regex(text.filter(file_like), pattern=_FILE_NAME)
    return pc.or_(pc.match_substring_regex(text, pattern=_PATTERN), pc.replace_with_mask(file_like, file_like, named))
