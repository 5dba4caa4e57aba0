"""Telephone numbers: the country decides, what is certain is repaired, nothing is made up."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zithara_worker.processors.phone import international, looks_invented, observers_whatsapp, repaired_indian


@pytest.mark.parametrize(
    ("number", "country", "expected"),
    [
        ("9876543210", "IN", "919876543210"),
        ("9123456789", "IN", "919123456789"),
        ("09876543210", "IN", "919876543210"),
        ("919876543210", "IN", "919876543210"),
        ("+91 98765 43210", "IN", "919876543210"),
        ("0091 98765 43210", "IN", "919876543210"),
        ("022-2266-1234", "IN", "912222661234"),
        ("९८७६५४३२१०", "IN", "919876543210"),
        ("4155550132", "US", "14155550132"),
        ("+1 (415) 555-0132", "US", "14155550132"),
        ("+1 415 555 0132", "IN", "14155550132"),
        ("020 7946 0958", "GB", "442079460958"),
        ("+971 50 123 4567", "AE", "971501234567"),
        ("050 123 4567", "AE", "971501234567"),
        ("+65 6123 4567", "SG", "6561234567"),
        ("06 698 12345", "IT", "390669812345"),
        ("9876543210", "in", "919876543210"),
        ("9876543210", "", "919876543210"),
    ],
)
def test_a_valid_number_gets_the_code_of_its_country(number: str, country: str, expected: str) -> None:
    assert international(number, country) == expected


@pytest.mark.parametrize(
    ("number", "country", "expected"),
    [
        # Complete without its '+', and not a number of the address's country: it was right, and stays so.
        ("919876543210", "US", "919876543210"),
        ("971501234567", "IN", "971501234567"),
        ("12345", "IN", "12345"),
        ("(12) 345-67", "IN", "1234567"),
        ("+999 1234", "IN", "9991234"),
        ("4155550132", "XX", "4155550132"),
        ("ask at the desk", "IN", "ask at the desk"),
        ("9876543210/9123456789", "IN", "9876543210/9123456789"),
        ("-", "IN", "-"),
    ],
)
def test_a_number_its_country_does_not_know_is_passed_on_as_it_is(number: str, country: str, expected: str) -> None:
    assert international(number, country) == expected


@pytest.mark.parametrize("blank", ["", " ", "\t"])
def test_no_number_stays_no_number(blank: str) -> None:
    assert international(blank, "IN") == ""


@given(st.text(alphabet="0123456789+-() ./xe") | st.text(), st.sampled_from(["IN", "US", "GB", "AE", "", "XX", "??"]))
def test_an_answer_is_digits_or_the_number_as_it_was_and_never_made_up(number: str, country: str) -> None:
    answer = international(number, country)
    if answer in ("", number):
        assert answer == number or not number.strip()
        return
    assert re.fullmatch(r"[0-9]{1,250}", answer)
    if number.isascii() and not re.search("[A-Za-z]", number):
        # The national number is the customer's: at most a country code of three digits was put in front.
        digits = re.sub(r"[^0-9]", "", number)
        assert any(answer[code:] and answer[code:] in digits for code in range(4))


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        ("9123456789", "919123456789"),
        ("9109876543210", "919876543210"),
        ("9102222661234", "912222661234"),
        # Right already, of another country, or not certain
        ("919876543210", "919876543210"),
        ("9112345", "9112345"),
        ("1123456789", "1123456789"),
        ("2222661234", "2222661234"),
        ("914155550132", "914155550132"),
        ("9100000000000", "9100000000000"),
        ("91 9876543210", "91 9876543210"),
        ("९१२३४५६७८९", "९१२३४५६७८९"),
        ("", ""),
    ],
)
def test_a_carts_number_is_repaired_only_where_it_is_certain(number: str, expected: str) -> None:
    assert repaired_indian(number) == expected


@given(st.text(alphabet="0123456789", max_size=15) | st.text())
def test_a_repair_adds_or_removes_the_prefix_only(number: str) -> None:
    repaired = repaired_indian(number)
    if repaired != number:
        assert repaired == "91" + number[-10:]


@pytest.mark.parametrize(
    ("number", "mangled"),
    [
        ("9876543210", "91876543210"),
        ("+91 98765 43210", "91 98765 43210"),
        ("9199887766", "9188" + "7766"),
        ("8012345678", "918012345678"),
        ("", ""),
    ],
)
def test_the_observers_formula_is_the_one_the_module_has(number: str, mangled: str) -> None:
    assert observers_whatsapp(number) == mangled


@pytest.mark.parametrize(
    ("number", "invented"),
    [
        ("+919912345678", True),
        ("+919912345678\n", False),
        ("+91991234567", False),
        ("919912345678", False),
        ("+91 9912345678", False),
        ("+9199१२३४५६७८", False),
    ],
)
def test_an_invented_number_is_told_by_its_exact_form(number: str, invented: bool) -> None:
    assert looks_invented(number) is invented


def test_the_numbering_plans_are_not_loaded_until_a_number_needs_them() -> None:
    probe = "import sys, zithara_worker.processors as p; print('phonenumbers' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True, timeout=60)
    assert answer.stdout.strip() == "False"
