"""The colours of a landscape: moods, and the arithmetic of colours."""

import colorsys

import msgspec

Color = tuple[int, int, int]


class Palette(msgspec.Struct, frozen=True):
    """The colours of one hour and weather, from the top of the sky down to the ground."""

    zenith: Color
    sky: Color
    horizon: Color
    glow: Color
    """The sun or moon, and what it lights."""
    land: Color
    """The nearest ground; what is farther fades towards the sky."""
    stars: float
    """How many stars stand in the sky, 0 to 1."""

    def rotate_hues(self, degrees: float) -> "Palette":
        """Return the same mood with every hue turned round the colour wheel."""
        colors = (self.zenith, self.sky, self.horizon, self.glow, self.land)
        zenith, sky, horizon, glow, land = (_rotate_hue(color, degrees) for color in colors)
        return Palette(zenith, sky, horizon, glow, land, self.stars)

    def land_color_at(self, depth: float) -> Color:
        """Return the colour of land at a depth: 0 is lost in the haze of the horizon, 1 is close."""
        return mix_colors(mix_colors(self.horizon, self.sky, 0.5), self.land, depth)


def mix_colors(start: Color, end: Color, share: float) -> Color:
    """Return the colour that lies `share` of the way from `start` to `end`."""
    return (
        round(start[0] + (end[0] - start[0]) * share),
        round(start[1] + (end[1] - start[1]) * share),
        round(start[2] + (end[2] - start[2]) * share),
    )


def _rotate_hue(color: Color, degrees: float) -> Color:
    hue, saturation, value = colorsys.rgb_to_hsv(color[0] / 255, color[1] / 255, color[2] / 255)
    red, green, blue = colorsys.hsv_to_rgb((hue + degrees / 360) % 1.0, saturation, value)
    return (round(red * 255), round(green * 255), round(blue * 255))


def _mood_palette(zenith: str, sky: str, horizon: str, glow: str, land: str, *, stars: float) -> Palette:
    return Palette(
        _parse_color(zenith), _parse_color(sky), _parse_color(horizon), _parse_color(glow), _parse_color(land), stars
    )


def _parse_color(hex_digits: str) -> Color:
    red, green, blue = bytes.fromhex(hex_digits)
    return (red, green, blue)


MOODS = {
    "dusk": _mood_palette("1a1446", "75306f", "ff9d5c", "ffe9b8", "150d26", stars=0.4),
    "night": _mood_palette("040717", "0f2150", "3f6fa5", "e6efff", "03050d", stars=1.0),
    "dawn": _mood_palette("3f62a8", "c690b6", "ffdcb8", "fff7e4", "20304f", stars=0.0),
    "aurora": _mood_palette("020d1c", "064049", "35b98f", "c3ffe4", "010a0f", stars=0.9),
    "sunset": _mood_palette("1c060a", "741828", "f4682e", "ffd884", "0f0406", stars=0.2),
    "noon": _mood_palette("1767a6", "6cbcdb", "eaf7ee", "ffffff", "123f3d", stars=0.0),
    "dream": _mood_palette("0c0426", "42126f", "c25ad6", "ffdcfb", "08031a", stars=0.9),
    "desert": _mood_palette("4c6fa6", "dcb68c", "fdebc6", "fff6dc", "4f2d25", stars=0.0),
}
"""Every mood by the word that a prompt may call it by."""
