"""The reference networks against FocoosAI's outputs, parameter names and shapes."""

from __future__ import annotations

import zlib

import fai_fast
import numpy as np
import pytest
import torch
from fai_fast import reference
from fai_fast.reference.blocks import sine_position
from helpers.golden_forward import NAMES, golden_image, golden_outputs, golden_state, state_shapes
from helpers.networks import small_spec

ALL = [*NAMES, "fai-bf-m-ade"]


def golden_model(name: str) -> reference.QueryMaskModel:
    model = reference.build(name)
    state = {key: torch.from_numpy(value) for key, value in golden_state(name).items()}
    model.load_state_dict(state)
    return model.eval()


def images_of(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]


def test_the_golden_image_is_drawn_as_its_recipe_says():
    image = golden_image()
    assert zlib.crc32(image.tobytes()) == 467441035
    for name in NAMES:
        assert np.array_equal(golden_outputs(name)["image_crop"], image[:8, :8])


@pytest.mark.parametrize("name", fai_fast.models()[:10])
def test_parameters_have_the_published_names_and_shapes_in_order(name):
    with torch.device("meta"):
        model = reference.build(name)
    ours = [(key, tuple(value.shape)) for key, value in model.state_dict().items()]
    assert ours == list(state_shapes(name).items())


@pytest.mark.parametrize("name", ALL)
@torch.inference_mode()
def test_golden_outputs_are_reproduced(name):
    expected = golden_outputs(name)
    mask_logits, class_logits, aux = golden_model(name)(images_of(golden_image()))
    masks = mask_logits[0].numpy()
    assert aux == ()
    assert masks.shape == tuple(expected["mask_shape"])
    np.testing.assert_allclose(class_logits[0].numpy(), expected["logits"], atol=1e-4, rtol=0)
    spread = expected["mask_std"][:, None, None]
    assert (np.abs(masks[:, ::4, ::4] - expected["masks_sub"]) / spread).max() < 1e-4
    np.testing.assert_allclose(masks.mean((1, 2)), expected["mask_mean"], atol=1e-3, rtol=1e-4)
    np.testing.assert_allclose(masks.std((1, 2)), expected["mask_std"], atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("family", ["fai_mf", "bisenetformer"])
def test_a_network_of_ones_own_trains(family):
    torch.manual_seed(0)
    spec = small_spec(family, transformer_predictor_dec_layers=3)
    model = reference.build(spec)
    output = model(255 * torch.rand(2, 3, 64, 96))
    stride = 4 if family == "fai_mf" else 8
    assert model.stride == stride
    assert output.mask_logits.shape == (2, 7, 64 // stride, 96 // stride)
    assert output.class_logits.shape == (2, 7, 4)
    assert len(output.aux) == 3
    sum(
        prediction.mask_logits.sum() + prediction.class_logits.sum() for prediction in (output, *output.aux)
    ).backward()
    without = [name for name, parameter in model.named_parameters() if parameter.grad is None]
    assert without == []


@pytest.mark.parametrize("layers", [0, 2])
def test_encoder_layers_are_what_the_configuration_says(layers):
    model = reference.build(small_spec("fai_mf", pixel_decoder_transformer_layers=layers)).eval()
    keys = model.state_dict().keys()
    assert sum(key.endswith("self_attn.in_proj_weight") and "encoder" in key for key in keys) == layers
    assert ("pixel_decoder.input_proj.weight" in keys) == (layers > 0)
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 32, 32)).mask_logits.isfinite().all()


def test_sine_positions_by_the_formula():
    height, width, dim = 3, 5, 16
    got = sine_position(height, width, dim, torch.device("cpu"), torch.float32).reshape(height, width, dim)
    for y in range(height):
        for x in range(width):
            for offset, coordinate, length in ((0, y + 1, height), (dim // 2, x + 1, width)):
                for k in range(dim // 2):
                    angle = coordinate / (length + 1e-6) * 2 * np.pi / 10000 ** (2 * (k // 2) / (dim // 2))
                    expected = np.sin(angle) if k % 2 == 0 else np.cos(angle)
                    assert abs(float(got[y, x, offset + k]) - expected) < 1e-5


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 4, 64, 64), (1, 3, 65, 64), (1, 3, 64, 48)])
def test_images_of_another_shape_are_refused(shape):
    model = reference.build(small_spec("bisenetformer"))
    with pytest.raises(ValueError, match=r"images: got shape .*multiples of 32"):
        model(torch.zeros(shape))


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="no-such-model"):
        reference.build("no-such-model")
