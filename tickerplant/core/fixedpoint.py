"""Decimal strings to scaled integers and back, exactly.

The exchange sends prices as dollar strings of 0-6 decimals (`"0.3300"`) and sizes as count strings of 2
decimals (`"-40.50"`). Prices are held in 1e-4 dollar (`_e4`), sizes in 1e-2 contract (`_e2`). Digits beyond the
scale must be zeros; anything else is a `FixedPointError`, never a rounding. Source: Kalshi "fixed point" page.
"""

from collections.abc import Callable

from tickerplant.errors import FixedPointError
from tickerplant.limits import DECIMAL_TEXT_MAX_CHARACTERS, FIXEDPOINT_CACHE_ENTRIES, SIZE_E2_MAX

DECIMALS_MAX = 6
PRICE_SCALE = 4
SIZE_SCALE = 2


def parse_scaled(text: str, scale: int) -> int:
    """The decimal string `text` as an integer in units of 10**-scale.

    Accepts an optional minus, at least one digit, and optionally a point followed by 1-6 digits. Raises
    `FixedPointError` for any other form (plus sign, exponent, spaces, underscores, bare point, non-ASCII digits) and
    for non-zero digits beyond `scale`.
    """
    if type(text) is not str or not 0 < len(text) <= DECIMAL_TEXT_MAX_CHARACTERS:
        raise FixedPointError(f"not a decimal string: {text!r:.60}")
    negative = text[0] == "-"
    whole, point, fraction = (text[1:] if negative else text).partition(".")
    well_formed = whole.isascii() and whole.isdigit()
    if point:
        well_formed = well_formed and fraction.isascii() and fraction.isdigit()
    if not well_formed or len(fraction) > DECIMALS_MAX:
        raise FixedPointError(f"not a decimal string of 0-{DECIMALS_MAX} decimals: {text!r}")
    if len(fraction) > scale:
        if fraction[scale:].strip("0"):
            raise FixedPointError(f"{text!r} has digits beyond {scale} decimals; refusing to round")
        fraction = fraction[:scale]
    value = int(whole + fraction.ljust(scale, "0"))
    return -value if negative else value


def format_scaled(value: int, scale: int) -> str:
    """The integer `value`, in units of 10**-scale, as a decimal string with exactly `scale` decimals."""
    sign = "-" if value < 0 else ""
    digits = str(abs(value)).rjust(scale + 1, "0")
    return f"{sign}{digits[:-scale]}.{digits[-scale:]}" if scale else f"{sign}{digits}"


def format_price_e4(price_e4: int) -> str:
    """Dollars with 4 decimals, as the exchange writes them: 3300 -> `"0.3300"`."""
    return format_scaled(price_e4, PRICE_SCALE)


def format_size_e2(size_e2: int) -> str:
    """Contracts with 2 decimals, as the exchange writes them: -4050 -> `"-40.50"`."""
    return format_scaled(size_e2, SIZE_SCALE)


class ScaledTexts(dict[str, int]):
    """Parsed decimal strings of one scale, remembered: `texts[text]` parses at the first sight only.

    Bounded by `FIXEDPOINT_CACHE_ENTRIES`; when full it is emptied. Raises `FixedPointError` as `parse_scaled` and for
    values beyond `largest` either way; a refused text is not remembered.
    """

    def __init__(self, scale: int, largest: int) -> None:
        super().__init__()
        self._scale = scale
        self._largest = largest

    def __missing__(self, text: str) -> int:
        value = parse_scaled(text, self._scale)
        if abs(value) > self._largest:
            raise FixedPointError(f"{text!r} is out of range")
        if len(self) >= FIXEDPOINT_CACHE_ENTRIES:
            self.clear()
        self[text] = value
        return value


PRICE_TEXTS = ScaledTexts(PRICE_SCALE, SIZE_E2_MAX)
SIZE_TEXTS = ScaledTexts(SIZE_SCALE, SIZE_E2_MAX)
parse_price_e4: Callable[[str], int] = PRICE_TEXTS.__getitem__
"""`parse_price_e4("0.3300")` is 3300; raises `FixedPointError`."""
parse_size_e2: Callable[[str], int] = SIZE_TEXTS.__getitem__
"""`parse_size_e2("-40.50")` is -4050; raises `FixedPointError`."""
