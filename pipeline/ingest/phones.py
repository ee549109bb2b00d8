"""Phone numbers in a text: runs of digits that are written, announced or validated as one."""

import re
from functools import lru_cache
from typing import Final

import phonenumbers

_GAP: Final = r"[ \u00a0\u2009\u202f().\-/\u2010-\u2015]"
_RUN: Final = re.compile(rf"(?<![\w.,/@#=%&$€£¥₹\-])[+＋]?[(\[]?\d(?:{_GAP}{{0,3}}+\d)++(?![\w%€£¥$°@])")
"""A whole run of digits at a time, possessively: linear time, whatever the text."""
_ANNOUNCING: Final = (
    "tel|tele?phone|phone|ph|call|fax|mob|mobile|cell|text|sms|whats ?app|viber|hotline|dial|contact|kontakt",
    "tél|téléphone|appelez|telefon\\w*|tlf|rufen sie|anruf\\w*|hand[yi]|tfno|teléfono|telefone|llame\\w*|llamar|móvil",
    "ligue|celular|telefono|chiama\\w*|cellulare|cep|gsm|hubungi|telp|hp|wa|тел|телефон\\w*|звоните|моб",
)
_ANNOUNCING_ANYWHERE: Final = "[☎☏📞📱✆]\ufe0f?|電話(?:番号)?|电话|热线|手机|전화|문의|هاتف|تلفن|تماس|جوال"
_BETWEEN: Final = "us|me|now|today|nous|uns|at|on|no|nr|number|al|au|для|заказа|по|orders|free"
_CUE: Final = re.compile(
    rf"(?i)(?:\b(?:{'|'.join(_ANNOUNCING)})\b|{_ANNOUNCING_ANYWHERE})"
    rf"(?:[.: ]{{1,2}}(?:{_BETWEEN})\b){{0,3}}[\s:：.#(–-]*$"
)
_OTHER_NUMBERS: Final = (
    "isbn(?:-1[03])?|issn|ean|upc|gtin|sku|asin|art(?:icle)?|item|model|ref|no|nr|id|serial|part|lot|doi|patent|cat",
    "stock|photo|image|img|shutterstock|getty|артикул|арт|код|code|número|numéro|oclc|mls|vin|pmid|iban|case|barcode",
    "order",
)
_NOT_A_PHONE: Final = re.compile(
    rf"(?i)(?:\b(?:{'|'.join(_OTHER_NUMBERS)})\b|№)\.?[\s:：#.-]*(?:(?:no|number|id|num)\b\.?)?[\s:#]*$"
)
_YEAR: Final = r"(?:1[5-9]|20)\d\d"
_DATE: Final = re.compile(
    rf"(?:{_YEAR}(?P<a>[-./ ])[01]?\d(?P=a)[0-3]?\d|[0-3]?\d(?P<b>[-./ ])[0-3]?\d(?P=b){_YEAR})(?:\D.*)?"
    rf"|{_YEAR} ?[-–/] ?{_YEAR}(?:\D.*)?|{_YEAR}[-.]?[01]\d[-.]?[0-3]\d[-_ .]\d+(?:[-. ]\d+)*"
)
_THOUSANDS: Final = re.compile(r"\d{1,3}(?:(?P<s>[ .\u00a0\u2009\u202f])\d{3})(?:(?P=s)\d{3})*")
_IP: Final = re.compile(r"(?:\d{1,3}\.){3}\d{1,3}")
_AMERICAN: Final = re.compile(
    r"(?:1[ .-])?(?:\([2-9]\d\d\)[ .-]{0,2}|[2-9]\d\d[ .-])\d{3}[ .-]\d{4}"
    r"|1[ -]8(?:00|33|44|55|66|77|88)[ -]\d{3}[ -]\d{4}"
)
_NATIONAL: Final = re.compile(r"[(\[]?0\d{1,4}[)\]]?(?:[ \u00a0./\-\u2010-\u2015]{1,3}\d{2,8}){1,5}|0\d{9,10}")
"""With a trunk prefix and in groups."""
_BRAZILIAN: Final = re.compile(r"\([1-9]\d\) ?9?\d{4}[- ]\d{4}")
_MOBILE: Final = re.compile(
    r"(?:[67]\d\d|9\d\d) ?\d{3} ?\d{3}|8 ?[(\-]\d{3}[)\-] ?\d{3}[- ]\d\d[- ]\d\d|1[3-9]\d[- ]\d{4}[- ]\d{4}"
)
_REGIONS: Final = ("GB", "DE", "FR", "IT", "JP", "AU", "TR", "ID", "KR", "CN", "NL", "ES", "IR", "EG", "ZA", "IN", "CH")
"""Whose national numbers a trunk prefix is tried against."""
_BEFORE: Final = 32
_BETWEEN_NUMBERS: Final = re.compile(r"[^\s/\-–](?:[^\s/\-–]|[^\S\r\n](?![\s/\-–])|(?<!\s)[/\-–](?!\s))*")
"""The numbers of a run that holds several: "030 1234567 / 030 7654321", "020 7946 0958 - 020 7946 0959"."""


def phone_spans(text: str) -> list[tuple[int, int]]:
    """Where phone numbers are: international ones valid by libphonenumber's plans, national ones written as such or
    announced by a word before them. Dates, prices, sizes, ISBNs, IP addresses and article numbers are none."""
    found = []
    for match in _RUN.finditer(text):
        start, end = match.span()
        if is_phone(match[0], text[max(0, start - _BEFORE) : start]):
            found.append((start, end))
            continue
        for number in _BETWEEN_NUMBERS.finditer(match[0]):
            first = start + number.start()
            if len(number[0]) < end - start and is_phone(number[0], text[max(0, first - _BEFORE) : first]):
                found.append((first, start + number.end()))
    return found


def is_phone(number: str, before: str) -> bool:
    """Whether a run of digits is a phone number, given the code points before it."""
    digits = sum(map(str.isdigit, number))
    if not 7 <= digits <= 15:
        return False
    if number[0] in "+＋":
        return _valid(number, None)
    if number.startswith("00") and _valid("+" + number[2:], None):
        return True
    if _CUE.search(before):
        return _DATE.fullmatch(number) is None
    if _NOT_A_PHONE.search(before):
        return False
    if _DATE.fullmatch(number) or _IP.fullmatch(number):
        return False
    if _AMERICAN.fullmatch(number) or _BRAZILIAN.fullmatch(number):
        return True
    if _THOUSANDS.fullmatch(number):
        return False
    if _NATIONAL.fullmatch(number):
        return any(_valid(number, region) for region in _REGIONS)
    return bool(_MOBILE.fullmatch(number)) and any(_valid(number, region) for region in ("ES", "PL", "RU", "CN"))


@lru_cache(4096)
def _valid(number: str, region: str | None) -> bool:
    try:
        return bool(phonenumbers.is_valid_number(phonenumbers.parse(number, region)))
    except phonenumbers.NumberParseException:
        return False
