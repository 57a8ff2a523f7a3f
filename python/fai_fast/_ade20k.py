"""ADE20K's 150 classes: the 100 of its instance segmentation benchmark are things, the other 50 are stuff.

Source: ade20k_instance_catid_mapping.txt, the benchmark's own table of the classes of scene parsing that its instances
have; register_ade20k_panoptic.py of Mask2Former says the same.
"""

from __future__ import annotations

__all__ = ["STUFF", "THINGS", "stuff_in"]


def _names(text: str) -> tuple[str, ...]:
    return tuple(" ".join(name.split()) for name in text.split(","))


# Each by the first of its names, in the order in which networks number the classes.
THINGS = _names(
    """
    bed, window, cabinet, person, door, table, curtain, chair, car, painting, sofa, shelf, mirror, armchair,
    seat, fence, desk, wardrobe, lamp, tub, rail, cushion, box, column, signboard, chest of drawers,
    counter, sink, fireplace, refrigerator, stairs, case, pool table, pillow, screen door, bookcase, coffee
    table, toilet, flower, book, bench, countertop, stove, palm, kitchen island, computer, swivel chair,
    boat, arcade machine, bus, towel, light, truck, chandelier, awning, street lamp, booth, tv, plane,
    clothes, pole, bannister, ottoman, bottle, van, ship, fountain, washer, plaything, stool, barrel,
    basket, bag, minibike, oven, ball, food, step, trade name, microwave, pot, animal, bicycle, dishwasher,
    screen, sculpture, hood, sconce, vase, traffic light, tray, trash can, fan, plate, monitor, bulletin
    board, radiator, glass, clock, flag
    """
)
STUFF = _names(
    """
    wall, building, sky, floor, tree, ceiling, road, grass, sidewalk, earth, mountain, plant, water, house,
    sea, rug, field, rock, base, sand, skyscraper, grandstand, path, runway, stairway, river, bridge, blind,
    hill, bar, hovel, tower, dirt track, land, escalator, buffet, poster, stage, conveyer belt, canopy,
    pool, falls, tent, cradle, tank, lake, blanket, pier, crt screen, shower
    """
)
# As the data set's own list of objects has them, where scene parsing says it shorter.
_OTHER_NAMES = {
    "windowpane": "window",
    "bathtub": "tub",
    "railing": "rail",
    "streetlight": "street lamp",
    "television receiver": "tv",
    "airplane": "plane",
    "apparel": "clothes",
    "swimming pool": "pool",
    "waterfall": "falls",
    "ashcan": "trash can",
}


def stuff_in(classes: tuple[str, ...]) -> tuple[int, ...] | None:
    """Which of `classes` are stuff, by their indices; None where they are not ADE20K's 150, in whatever order.

    A class may have several names, of which the first counts: "road, route".
    """
    first = [name.partition(",")[0].strip().lower() for name in classes]
    known = [_OTHER_NAMES.get(name, name) for name in first]
    if len(known) != len(THINGS) + len(STUFF) or set(known) != {*THINGS, *STUFF}:
        return None
    return tuple(index for index, name in enumerate(known) if name in STUFF)
