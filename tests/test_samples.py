"""The pictures that come with the package, by name."""

from __future__ import annotations

import fai_fast
import pytest
from fai_fast import samples
from fai_fast.images import read_image


def test_all_of_them_are_pictures():
    assert "shapes.jpg" in samples.names()
    for name in samples.names():
        assert read_image(samples.path(name)).ndim == 3
    assert fai_fast.samples is samples


@pytest.mark.parametrize(
    ("name", "kind", "message"),
    [
        ("street.jpg", ValueError, "name: got 'street.jpg', expected one of 'shapes.jpg'"),
        ("../samples/shapes.jpg", ValueError, "name: got '../samples/shapes.jpg', expected one of"),
        ("", ValueError, "name: got '', expected one of"),
        (b"shapes.jpg", TypeError, "name: got bytes, expected a str"),
    ],
)
def test_another_name_is_told_what_there_is(name, kind, message):
    with pytest.raises(kind, match=message):
        samples.path(name)
