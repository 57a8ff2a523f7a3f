"""The options that calls share: what types say is what is checked, and what no call knows is refused by all of them."""

from __future__ import annotations

import inspect
import typing

import fai_fast
import pytest
from fai_fast import _options
from fai_fast.engines import select
from fai_fast.stream import Stream


def parameters(call):
    """Names of those that must be given by name."""
    return {
        name for name, found in inspect.signature(call).parameters.items() if found.kind is found.KEYWORD_ONLY
    }


class Untouched(fai_fast.Model):
    """A model whose options are looked at before anything of it is used."""

    def __init__(self):
        pass


def test_the_options_are_those_of_infer():
    explicit = parameters(fai_fast.Model.infer)
    assert _options.InferOptions.__optional_keys__ == explicit
    assert _options.BatchOptions.__optional_keys__ == explicit - {"masks_device"}
    assert not _options.InferOptions.__required_keys__


def test_the_options_of_streams_are_those_of_stream_and_of_results():
    of_results = _options.ResultOptions.__optional_keys__ | {"masks_device"}
    assert _options.StreamOptions.__optional_keys__ == (parameters(Stream) - {"infer"}) | of_results


@pytest.mark.parametrize("call", ["submit", "infer_batch", "stream"])
@pytest.mark.parametrize("name", ["colour", "threshhold", "batch"])
def test_an_option_that_no_call_has_is_refused(call, name):
    with pytest.raises(
        TypeError, match=rf"^{name}: {call}\(\) has no such option, expected some of .*threshold"
    ):
        getattr(Untouched(), call)([], **{name: 1})


def test_masks_on_a_device_are_of_single_frames():
    with pytest.raises(TypeError, match=r"^masks_device: infer_batch\(\) has no such option"):
        Untouched().infer_batch([], masks_device=True)


def test_the_engines_are_those_that_there_are():
    assert ("auto", *select.GPU_ENGINES, *select.CPU_ENGINES) == _options.ENGINES
    assert select.ENGINES is _options.ENGINES


def test_types_and_tuples_are_the_same_words():
    words = [getattr(_options, name) for name in _options.__all__ if name.isupper()]
    literals = [
        typing.get_args(getattr(_options, name))
        for name in _options.__all__
        if typing.get_origin(getattr(_options, name)) is typing.Literal
        and name != "Device"  # of which a machine decides what there is
    ]
    assert sorted(words) == sorted(literals)
    assert ("stretch", "letterbox", "pad") in words
