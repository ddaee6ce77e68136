"""Landscapes from a prompt and a seed: what the fake engine paints.

- `dice`      chance that falls the same way everywhere
- `palette`   moods: the colours of an hour and a weather
- `brushes`   gradients, smoke and smooth-edged stencils
- `painting`  a sky with its light and stars, and the ground before it
- `scenes`    mountains, hills, a forest, a city, a lake

A redelivered step owes the same bytes on another machine. So there is no `hash()` in here, and no arithmetic but
`+ - * /`: powers and most of `math` differ in the last bit from one C library to the next.
"""

from PIL import Image

from runners.engines.landscape.brushes import SMOOTH_RESAMPLING, Size, fit_size
from runners.engines.landscape.dice import Dice
from runners.engines.landscape.painting import Painting
from runners.engines.landscape.palette import MOODS
from runners.engines.landscape.scenes import SCENES

SHARP_PIXELS = 1024 * 1024
"""A larger picture is painted on about this many pixels and resized, so that any size costs a bounded time."""


def paint(prompt: str, seed: int, size: Size) -> Image.Image:
    """Paint the landscape of a prompt and a seed in exactly this size.

    The prompt decides mood and scene (naming one chooses it), prompt and seed together the shapes, so that the items
    of one job look like takes of one idea.
    """
    theme = Dice("theme", prompt)
    palette = theme.draw_named_option(MOODS, prompt).rotate_hues(theme.draw_between(-20, 20))
    scene = theme.draw_named_option(SCENES, prompt)
    painting = Painting(palette, Dice("shapes", prompt, str(seed)), fit_size(size, SHARP_PIXELS))
    scene(painting)
    painting.darken_corners()
    return painting.image if painting.size == size else painting.image.resize(size, SMOOTH_RESAMPLING)
