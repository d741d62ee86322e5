"""Decimal strings to integers and back: exact against `decimal.Decimal`, loud on everything else."""

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickerplant.core.fixedpoint import (
    PRICE_SCALE,
    SIZE_SCALE,
    ScaledTexts,
    format_price_e4,
    format_scaled,
    format_size_e2,
    parse_price_e4,
    parse_scaled,
    parse_size_e2,
)
from tickerplant.errors import FixedPointError, TickerplantError
from tickerplant.limits import DECIMAL_TEXT_MAX_CHARACTERS, FIXEDPOINT_CACHE_ENTRIES, SIZE_E2_MAX

GRAMMAR = re.compile(r"-?[0-9]+(\.[0-9]{1,6})?")
SCALES = st.integers(0, 6)
DECIMAL_TEXTS = st.from_regex(r"-?[0-9]{1,20}(\.[0-9]{1,6})?", fullmatch=True)
ALMOST_DECIMAL = st.text(
    alphabet="0123456789.-+eE_ ,\t\n\0xXnaif\u0663\u00b2\u00bd\uff11\u2212", max_size=36
)


def exact(text: str, scale: int) -> int | None:
    """What the decimal module makes of a text that the grammar allows; None where it must be refused."""
    if len(text) > DECIMAL_TEXT_MAX_CHARACTERS or GRAMMAR.fullmatch(text) is None:
        return None
    scaled = Decimal(text).scaleb(scale)
    return int(scaled) if scaled == scaled.to_integral_value() else None


@given(DECIMAL_TEXTS, SCALES)
def test_a_decimal_string_is_exact_or_refused(text, scale):
    """Every string of the grammar equals its Decimal, or has digits that the scale cannot hold."""
    expected = exact(text, scale)
    if expected is None:
        with pytest.raises(FixedPointError):
            parse_scaled(text, scale)
    else:
        assert parse_scaled(text, scale) == expected


@given(st.one_of(ALMOST_DECIMAL, st.text(max_size=40)), SCALES)
def test_any_other_text_is_refused(text, scale):
    """Nothing outside the grammar is read as a number, whatever Python's own int() and float() take."""
    expected = exact(text, scale)
    if expected is None:
        with pytest.raises(FixedPointError):
            parse_scaled(text, scale)
    else:
        assert parse_scaled(text, scale) == expected


@given(st.integers(-(10**22), 10**22), SCALES)
def test_formatting_is_exact_and_reads_back(value, scale):
    """Integer to text to Decimal and to integer again, without a difference."""
    text = format_scaled(value, scale)
    assert Decimal(text) == Decimal(value).scaleb(-scale)
    assert len(text.partition(".")[2]) == scale
    assert parse_scaled(text, scale) == value


@given(st.integers(0, 10_000), st.integers(-(10**15), 10**15))
def test_prices_and_sizes_of_the_exchange(price_e4, size_e2):
    """The two scales that the project uses, through their own functions."""
    assert parse_price_e4(format_price_e4(price_e4)) == price_e4
    assert parse_size_e2(format_size_e2(size_e2)) == size_e2
    assert Decimal(format_price_e4(price_e4)) * 10**PRICE_SCALE == price_e4
    assert Decimal(format_size_e2(size_e2)) * 10**SIZE_SCALE == size_e2


@pytest.mark.parametrize(
    ("text", "price_e4"),
    [
        ("0", 0),
        ("-0", 0),
        ("-0.0000", 0),
        ("1", 10_000),
        ("0.33", 3300),
        ("0.3300", 3300),
        ("0.330000", 3300),
        ("0.0001", 1),
        ("0.000100", 1),
        ("00.5", 5000),
        ("-0.5", -5000),
        ("100000000000.0000", SIZE_E2_MAX),
    ],
)
def test_accepted_forms(text, price_e4):
    """0-6 decimals, an optional minus and leading zeros."""
    assert parse_price_e4(text) == price_e4


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "-",
        "--1",
        "+1",
        "1.",
        ".5",
        "-.5",
        "1..2",
        "1.2.3",
        " 1",
        "1 ",
        "1\n",
        "1_000",
        "1,5",
        "1e2",
        "1E-2",
        "0x10",
        "nan",
        "inf",
        "Infinity",
        "\u0663.\u0663",
        "1.\u0663",
        "\uff11",
        "\u00b2",
        "\u00bd",
        "\u22121",
        "1-",
        "1.-5",
        "0.1234567",
        "0.0000000",
        "0.00001",
        "0.123456",
        "1\0",
        "1" * (DECIMAL_TEXT_MAX_CHARACTERS + 1),
    ],
)
def test_refused_forms(text):
    """Each of these is a FixedPointError that shows the text, and is not remembered as a number."""
    with pytest.raises(FixedPointError) as caught:
        parse_price_e4(text)
    assert isinstance(caught.value, TickerplantError)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200
    with pytest.raises(FixedPointError):
        parse_price_e4(text)


@pytest.mark.parametrize("value", [None, 1, 1.5, b"1", True, Decimal(1)])
def test_only_strings_are_read(value):
    """A number that is not a string would have been through a float already."""
    with pytest.raises(FixedPointError):
        parse_scaled(value, 4)


def test_the_longest_text_is_read():
    """The bound itself is inside."""
    text = "9" * DECIMAL_TEXT_MAX_CHARACTERS
    assert parse_scaled(text, 0) == int(text)


def test_the_cache_is_bounded_and_stays_right():
    """At its bound the cache empties itself; values before and after are the same."""
    texts = ScaledTexts(2, FIXEDPOINT_CACHE_ENTRIES * 2)
    for cents in range(FIXEDPOINT_CACHE_ENTRIES + 10):
        assert texts[format_size_e2(cents)] == cents
        assert len(texts) <= FIXEDPOINT_CACHE_ENTRIES
    assert len(texts) == 10
    assert texts["0.00"] == 0
    with pytest.raises(FixedPointError):
        texts["1e1"]
    assert "1e1" not in texts


@pytest.mark.parametrize("parse", [parse_price_e4, parse_size_e2])
@pytest.mark.parametrize("sign", ["", "-"])
def test_values_beyond_any_market_are_out_of_range(parse, sign):
    """So that no later sum leaves 64 bits; the bound itself is read by the scale it belongs to."""
    with pytest.raises(FixedPointError, match="out of range"):
        parse(f"{sign}{SIZE_E2_MAX}.01")
    assert abs(parse_size_e2(sign + format_size_e2(SIZE_E2_MAX))) == SIZE_E2_MAX
