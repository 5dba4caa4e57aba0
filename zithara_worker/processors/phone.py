"""International telephone numbers in the form Zithara takes: country code and national number, digits only.

The PHP module puts 91 in front of whatever does not begin with it, which is right for most Indian numbers and wrong
for all others. Here the number's country decides, by the numbering plans of the `phonenumbers` library. A number that
its plan does not know is passed on: no number is guessed or made up.

The library is imported at the first number, so that importing this package stays quick. Results are cached, because
the messages of one customer come in bursts.
"""

from __future__ import annotations

import re
from functools import lru_cache

INDIA = "IN"

#: Some 250 bytes an entry.
_REMEMBERED = 4096

_DIGITS_AND_SEPARATORS = re.compile(r"\+?[0-9 \t\u00a0().-]*")
_INVENTED = re.compile(r"\+9199[0-9]{8}")


@lru_cache(maxsize=_REMEMBERED)
def international(number: str, country: str = INDIA) -> str:
    """`number` as digits with its country code; `country` (ISO 3166, two letters) applies to a number without '+'.

    ('9123456789', 'IN') is '919123456789', ('020 7946 0958', 'GB') is '442079460958', ('+971 50 123 4567', 'IN') is
    '971501234567'. A number that is not valid is not repaired: if it has only digits and separators, its digits are
    returned, which is right for a complete number without '+'; any other text is returned unchanged. Blank becomes ''.
    """
    import phonenumbers

    if not number.strip():
        return ""
    try:
        parsed = phonenumbers.parse(number, country.strip().upper() or INDIA)
    except phonenumbers.NumberParseException:
        return _as_it_is(number)
    if not phonenumbers.is_valid_number(parsed):
        return _as_it_is(number)
    return f"{parsed.country_code}{phonenumbers.national_significant_number(parsed)}"


@lru_cache(maxsize=_REMEMBERED)
def repaired_indian(number: str) -> str:
    """A cart's number, repaired only where it is certain what the module's observers did to it.

    CartSave and CheckAbandonedCarts put 91 in front of every number that does not begin with these two digits.
    So ten digits that are an Indian mobile lack their country code, and 91, 0 and ten digits that are an Indian
    number have kept the 0 of long distance. Everything else may be a number of any country: unchanged.
    """
    import phonenumbers

    if not (number.isascii() and number.isdigit()):
        return number
    if len(number) == 10:
        national = number
    elif len(number) == 13 and number.startswith("910"):
        national = number[3:]
    else:
        return number
    try:
        parsed = phonenumbers.parse(national, INDIA)
    except phonenumbers.NumberParseException:
        return number
    if str(parsed.national_number) != national or not phonenumbers.is_valid_number(parsed):
        return number
    mobile = (phonenumbers.PhoneNumberType.MOBILE, phonenumbers.PhoneNumberType.FIXED_LINE_OR_MOBILE)
    if len(number) == 10 and phonenumbers.number_type(parsed) not in mobile:
        return number
    return f"91{national}"


def observers_whatsapp(phone_number: str) -> str:
    """The WhatsApp number that the module's customer observers make of a number: wrong for nearly every Indian one.

    CustomerSave, CustomerEdit and CustomerAddressSave mean to strip a leading '+91', but strip every leading '+',
    '9' and '1' there is: '9876543210' becomes '91876543210'.
    """
    return "91" + phone_number.lstrip("+91") if phone_number else ""


def looks_invented(number: str) -> bool:
    """Whether `number` has the form CustomerSave makes up for a customer who gave none: +9199 and eight digits."""
    return _INVENTED.fullmatch(number) is not None


def _as_it_is(number: str) -> str:
    if not _DIGITS_AND_SEPARATORS.fullmatch(number.strip()):
        return number
    return re.sub(r"[^0-9]", "", number) or number
