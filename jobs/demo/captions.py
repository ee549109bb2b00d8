"""Alt texts: emoji names in several languages, alone, in sentences, too short, or a camera's file name."""

import random
import re
from functools import lru_cache
from typing import Final

import emoji

from jobs.demo.sources import drawable

TEMPLATES: Final[dict[str, tuple[str, ...]]] = {
    "en": (
        "a drawing of {0}", "{0} next to {1}", "Close-up of {0} on a coloured background", "Sticker: {0}",
        "an icon showing {0} and {1}", "{0}, free to use, high resolution",
        "The best {0} you will see today, together with {1}",
    ),
    "de": ("Zeichnung: {0}", "{0} neben {1}", "Ein Bild mit {0} und {1} vor farbigem Hintergrund", "Aufkleber: {0}"),
    "fr": ("un dessin : {0}", "{0} à côté de {1}", "Image de {0} et {1} sur un fond coloré", "Autocollant : {0}"),
    "es": ("un dibujo de {0}", "{0} junto a {1}", "Imagen de {0} y {1} sobre un fondo de color", "Pegatina: {0}"),
    "pt": ("um desenho de {0}", "{0} ao lado de {1}", "Imagem de {0} e {1} sobre um fundo colorido"),
    "it": ("un disegno di {0}", "{0} accanto a {1}", "Immagine di {0} e {1} su uno sfondo colorato"),
    "ru": ("рисунок: {0}", "{0} рядом с {1}", "Картинка: {0} и {1} на цветном фоне"),
    "tr": ("{0} çizimi", "{0} ve {1}", "Renkli zemin üzerinde {0} ve {1}"),
    "id": ("gambar {0}", "{0} di samping {1}", "Gambar {0} dan {1} dengan latar berwarna"),
    "ja": ("{0}のイラスト", "{0}と{1}", "色つきの背景に{0}と{1}が描かれた画像"),
    "zh": ("{0}的插图", "{0}和{1}", "彩色背景上的{0}和{1}的图片"),
    "ko": ("{0} 그림", "{0} 옆의 {1}", "색깔 배경 위의 {0}와 {1} 이미지"),
    "ar": ("رسم {0}", "{0} بجانب {1}", "صورة {0} و{1} على خلفية ملونة"),
    "fa": ("طرح {0}", "{0} در کنار {1}", "تصویر {0} و {1} روی زمینه رنگی"),
}  # fmt: skip
LANGUAGES: Final = tuple(TEMPLATES)
_WEIGHTS: Final = tuple(8 if lang == "en" else 2 if lang in ("de", "fr", "es") else 1 for lang in LANGUAGES)
_SHORT: Final = ("pic", "img", "foto", "1", "🙂", "圖", "...", "logo")
_FILE_NAMES: Final = ("IMG_{:04d}.jpg", "DSC_{:04d}.JPG", "img{:05d}", "DSC{:05d}.jpeg", "IMG-{:04d}")
_PHOTO_NAMES: Final[dict[str, dict[str, str]]] = {
    "astronaut": {"en": "an astronaut in an orange suit", "de": "eine Astronautin", "fr": "une astronaute",
                  "es": "una astronauta"},
    "chelsea": {"en": "a ginger cat", "de": "eine rote Katze", "fr": "un chat roux", "es": "un gato naranja"},
    "coffee": {"en": "a cup of coffee", "de": "eine Tasse Kaffee", "fr": "une tasse de café", "es": "una taza de café"},
    "rocket": {"en": "a rocket on its launch pad", "de": "eine Rakete", "fr": "une fusée", "es": "un cohete"},
    "hubble_deep_field": {"en": "distant galaxies", "de": "ferne Galaxien", "fr": "des galaxies lointaines",
                          "es": "galaxias lejanas"},
    "motorcycle_left": {"en": "a motorcycle in a garage", "de": "ein Motorrad", "fr": "une moto", "es": "una moto"},
    "brick": {"en": "a brick wall", "de": "eine Ziegelmauer", "fr": "un mur de briques", "es": "un muro de ladrillos"},
    "grass": {"en": "grass seen from above", "de": "Gras von oben", "fr": "de l'herbe", "es": "hierba"},
    "gravel": {"en": "grey gravel", "de": "grauer Kies", "fr": "du gravier gris", "es": "grava gris"},
    "camera": {"en": "a man with a camera on a tripod", "de": "ein Mann mit Kamera", "fr": "un homme avec un appareil",
               "es": "un hombre con una cámara"},
    "coins": {"en": "ancient coins", "de": "alte Münzen", "fr": "des pièces anciennes", "es": "monedas antiguas"},
    "moon": {"en": "the surface of the moon", "de": "die Mondoberfläche", "fr": "la surface de la lune",
             "es": "la superficie de la luna"},
    "retina": {"en": "a human retina", "de": "eine menschliche Netzhaut", "fr": "une rétine", "es": "una retina"},
    "clock_motion": {"en": "a blurred clock", "de": "eine unscharfe Uhr", "fr": "une horloge floue",
                     "es": "un reloj borroso"},
}  # fmt: skip
"""What scikit-image's packaged photos show, by file name."""
_RULE: Final = re.compile(r"(?i)(IMG|DSC)[_-]?[0-9]+")


@lru_cache(maxsize=1)
def _data() -> dict[str, dict[str, object]]:
    for language in LANGUAGES:
        emoji.config.load_language(language)
    data: dict[str, dict[str, object]] = emoji.EMOJI_DATA
    return data


def name(character: str, language: str) -> str:
    """The emoji's, or the photo's, name in words; English where the language has none."""
    names = _PHOTO_NAMES[character] if character in _PHOTO_NAMES else _data()[character]
    return str(names.get(language, names["en"])).strip(":").replace("_", " ").replace("’", "'")


def write(subjects: tuple[str, ...], rng: random.Random) -> tuple[str, str]:
    """(alt text, language) for a picture of these emoji; the language of a file name is empty."""
    chance = rng.random()
    if chance < 0.03:
        return rng.choice(_SHORT), ""
    if chance < 0.07:
        return rng.choice(_FILE_NAMES).format(rng.randrange(10_000)), ""
    language = rng.choices(LANGUAGES, _WEIGHTS)[0]
    first = name(subjects[0], language)
    if chance < 0.25:
        return first, language
    second = name(subjects[1] if len(subjects) > 1 else rng.choice(drawable()), language)
    return rng.choice(TEMPLATES[language]).format(first, second), language


def breaks_text_rule(text: str) -> bool:
    """What the demo recipe's prefilter turns away: fewer than 5 code points, or a camera's file name."""
    return len(text) < 5 or _RULE.match(text) is not None
