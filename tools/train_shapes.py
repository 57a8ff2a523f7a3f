"""Trains and evaluates fai-mf-n-shapes, the small model that comes with the package, on scenes of tools/shapes.py.

    python tools/train_shapes.py --out shapes.pt                # from nothing, three hours on two cores
    python tools/train_shapes.py --out shapes.pt --start --minutes 77 --lr 7e-4  # from the weights of the package
    python tools/train_shapes.py --out shapes.pt --resume       # goes on where it was stopped
    python tools/train_shapes.py --evaluate shapes.pt           # mask AP on 500 scenes and 100 pictures never seen
    python tools/train_shapes.py --ship shapes.pt               # weights, int8 form, entry and sample into the package
    python tools/train_shapes.py --evaluate                     # what the package holds

What makes so little time enough: the backbone first learns to tell single shapes apart, in small cut-outs. Then the
whole network learns with the losses of :mod:`fai_fast.losses`, but on the whole grid of mask logits instead of drawn
points, and for all layers at once; a linear classifier of places, thrown away afterwards, teaches the pixel decoder
from the first step; and queries start out as a grid of places to look at.

Needs ``pip install 'fai-fast[train]'``: torch, scipy, opencv-python-headless, pycocotools; --ship also what
tools/quantize_shapes.py needs.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import fai_fast
import numpy as np
import numpy.typing as npt
import quantize_shapes
import shapes
import torch
from fai_fast import reference
from fai_fast.reference.blocks import sine_position
from fai_fast.registry import ModelConfig, ModelSpec, bundled_path
from fai_fast.weights import load_weights
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

NAME = "fai-mf-n-shapes"
REGISTRY = Path(fai_fast.__file__).parent / "registry"
IM_SIZE = 192
STRIDE = 4  # of the mask logits
GRID = 5  # of the queries' first places, GRID x GRID
CROP_SIZE = 64
FIRST_TRAINING_SEED = 1_000_000  # scenes of smaller seeds are held out
HELD_OUT_SCENES, HELD_OUT_SIZE = 500, 256
HELD_OUT_PICTURES, PICTURE_SIZES, FIRST_PICTURE_SEED = 100, ((720, 960), (720, 1280)), 10_000
SHAPED = {(720, 960): (192, 256), (720, 1280): (192, 352)}  # the network's sizes in the shape of a picture
# A picture on which the model finds every object, once, and nothing else, at the sizes that it is run at.
SAMPLE_SEED, SAMPLE_SIZE, SAMPLE_OBJECTS = 200, (720, 960), 7
SLOTS = 11  # objects in a picture to learn from, at most

# What is learnt from: scenes as those of the figures, wide ones as the sample, and ones of any size and aspect; drawn
# large enough that resizing thins them out as it does with pictures of cameras.
KINDS: list[tuple[tuple[int, int], int | None, shapes.Style]] = [
    ((256, 256), None, shapes.PLAIN),
    ((360, 480), SLOTS, shapes.PLAIN),
    ((288, 512), SLOTS, shapes.PLAIN),
    ((288, 288), None, shapes.VARIED),
    ((288, 384), None, shapes.VARIED),
]
KIND_SHARES = [0.4, 0.2, 0.2, 0.1, 0.1]
SMALL_SHARE = 0.5  # of the time, where one begins with nothing
# The network's sizes and how many pictures a step sees, most of them as the model is used by default.
BATCHES = [((192, 192), 8), ((160, 224), 8), ((192, 256), 6), ((192, 352), 4), ((224, 224), 6)]
BATCH_SHARES = [0.6, 0.1, 0.1, 0.1, 0.1]

METRICS = ("segm/AP", "segm/AP50", "segm/AP75")

Image = npt.NDArray[np.uint8]


def make_spec(**fields: Any) -> ModelSpec:
    """The registry entry, apart from what was measured."""
    entry = {
        "name": NAME,
        "family": "fai_mf",
        "task": "instance",
        "dataset": "tools/shapes.py",
        "im_size": IM_SIZE,
        "config": {
            "num_classes": len(shapes.CLASSES),
            "backbone_config": {
                "model_type": "stdc",
                "in_chans": 3,
                "base": 24,
                "layers": [2, 2, 2],
                "block_num": 4,
                "block_type": "cat",
            },
            "num_queries": GRID * GRID,
            "pixel_mean": [123.675, 116.28, 103.53],
            "pixel_std": [58.395, 57.12, 57.375],
            "pixel_decoder_out_dim": 32,
            "pixel_decoder_feat_dim": 32,
            "pixel_decoder_transformer_layers": 0,
            "pixel_decoder_transformer_nheads": 8,
            "pixel_decoder_transformer_dim_feedforward": 128,
            "transformer_predictor_out_dim": 32,
            "transformer_predictor_hidden_dim": 64,
            "transformer_predictor_dec_layers": 3,
            "transformer_predictor_dim_feedforward": 256,
            "head_out_dim": 32,
            "cls_sigmoid": False,
            "postprocessing_type": "instance",
            "mask_threshold": 0.5,
            "predict_all_pixels": False,
            "use_mask_score": True,
            "threshold": 0.5,
            "top_k": GRID * GRID,
            "criterion_deep_supervision": True,
            "criterion_eos_coef": 0.1,
            "criterion_num_points": 2304,
            "weight_dict_loss_dice": 5,
            "weight_dict_loss_mask": 5,
            "weight_dict_loss_ce": 2,
            "matcher_cost_class": 2,
            "matcher_cost_mask": 5,
            "matcher_cost_dice": 5,
        },
        "classes": list(shapes.CLASSES),
        "metrics": {},
        "bundled_weights": f"{NAME}.safetensors",
    }
    return ModelSpec.from_dict(entry | fields)


def new_seed(rng: np.random.Generator) -> int:
    """Where a stream of training scenes begins."""
    return FIRST_TRAINING_SEED + int(rng.integers(1 << 40))


def turned(rng: np.random.Generator, *maps: Image) -> list[Image]:
    """All maps in the same one of the eight positions of a square."""
    turns, mirror = int(rng.integers(4)), bool(rng.integers(2))
    return [np.rot90(x[:, ::-1] if mirror else x, turns) for x in maps]


def recolored(rng: np.random.Generator, image: Image) -> Image:
    image = image[:, :, rng.permutation(3)]
    return 255 - image if rng.random() < 0.3 else image


def worn(rng: np.random.Generator, image: Image) -> Image:
    """Now and then out of focus, compressed, or noisy."""
    if rng.random() < 0.6:
        return image
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.3, 1.3))
    if rng.random() < 0.5:
        quality = int(rng.integers(35, 96))
        image = cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 1)
    if rng.random() < 0.4:
        noise = rng.standard_normal(image.shape, dtype=np.float32) * np.float32(rng.uniform(0, 15))
        image = np.clip(image + noise + 0.5, 0, 255).astype(np.uint8)
    return image


def as_tensor(images: Tensor) -> Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W), channels last in memory."""
    return images.permute(0, 3, 1, 2).float().contiguous(memory_format=torch.channels_last)


class Crops:
    """Cut-outs of single shapes: a pool that grows, each turned, mirrored and recolored when used."""

    def __init__(self, seed: int, most: int = 20_000) -> None:
        self.rng = np.random.default_rng(seed)
        self.next_seed = new_seed(self.rng)
        self.most = most
        self.pool: list[tuple[Image, int]] = []

    def add_scene(self) -> int:
        """The cut-outs of one more scene; gives back how many."""
        size, objects = int(self.rng.choice([96, 128])), int(self.rng.integers(1, 5))
        image, labels, masks = shapes.scene(self.next_seed, size, objects)
        self.next_seed += 1
        for label, mask in zip(labels.tolist(), masks, strict=True):
            left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
            window = 1.45 * max(width, height) + 6
            step = window / CROP_SIZE
            corner = (left + (width - window) / 2, top + (height - window) / 2)
            placed = np.array([[step, 0, corner[0]], [0, step, corner[1]]], np.float32)
            crop = cv2.warpAffine(
                image,
                placed,
                (CROP_SIZE, CROP_SIZE),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT,
            )
            self.pool.append((crop.astype(np.uint8), label))
        return len(labels)

    def batch(self, count: int, fresh: int = 3) -> tuple[Tensor, Tensor]:
        """images float (B, 3, CROP_SIZE, CROP_SIZE), labels (B,)."""
        while len(self.pool) < 1000:
            self.add_scene()
        added = sum(self.add_scene() for _ in range(fresh)) if len(self.pool) < self.most else 0
        chosen = newest_first(self.rng, len(self.pool), added, count)
        images = np.empty((count, CROP_SIZE, CROP_SIZE, 3), np.uint8)
        for row, index in enumerate(chosen):
            (crop,) = turned(self.rng, self.pool[index][0])
            images[row] = recolored(self.rng, crop)
        return as_tensor(torch.from_numpy(images)), torch.tensor([self.pool[index][1] for index in chosen])


class Scenes(IterableDataset):
    """Whole scenes: a pool that is renewed, each turned, mirrored, recolored and worn when used.

    Iterating gives batches for ever; their sizes follow from the share of the time that is over.
    """

    def __init__(
        self,
        seed: int,
        fresh: int,
        most: int = 6_000,
        *,
        began: float = 0.0,
        seconds: float = math.inf,
        small: float = 0.0,
    ) -> None:
        self.rng = np.random.default_rng(seed)
        self.next_seed = new_seed(self.rng)
        self.fresh, self.most = fresh, most
        self.began, self.seconds, self.small = began, seconds, small
        # The picture, its labels, and whose each pixel is (255: nobody's).
        self.pool: list[tuple[Image, list[int], Image]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        while True:
            share = (time.monotonic() - self.began) / self.seconds
            yield self.batch(*plan(share, self.small, self.rng))

    def add_scene(self) -> int:
        """Draws one more scene, in place of a random one where the pool is full; gives back its index."""
        size, objects, style = KINDS[self.rng.choice(len(KINDS), p=KIND_SHARES)]
        image, labels, masks = shapes.scene(self.next_seed, size, objects, style)
        self.next_seed += 1
        owner = np.where(masks.any(0), masks.argmax(0), 255).astype(np.uint8)
        index = len(self.pool)
        if index < self.most:
            self.pool.append((image, labels.tolist(), owner))
        else:
            index = int(self.rng.integers(self.most))
            self.pool[index] = (image, labels.tolist(), owner)
        return index

    def batch(self, size: tuple[int, int], count: int) -> tuple[Tensor, Tensor, Tensor]:
        """images uint8 (B, H, W, 3); labels (B, N), -1 where there is none; covers (B, N, H/4, W/4).

        A cover is the share of a grid cell that a shape's visible part takes, 0..1.
        """
        chosen = [self.add_scene() for _ in range(max(self.fresh, min(128, self.most) - len(self.pool)))]
        chosen += self.rng.integers(0, len(self.pool), count).tolist()
        height, width = size
        images = np.empty((count, height, width, 3), np.uint8)
        labels = np.full((count, SLOTS), -1, np.int64)
        covers = np.zeros((count, SLOTS, height // STRIDE, width // STRIDE), np.float32)
        for row, index in enumerate(chosen[:count]):
            image, found, owner = self.pool[index]
            image, owner = turned(self.rng, image, owner)
            # As the package resizes: bilinearly, without antialias.
            image = cv2.resize(np.ascontiguousarray(recolored(self.rng, image)), (width, height))
            images[row] = worn(self.rng, image)
            for number, label in enumerate(found):
                labels[row, number] = label
                mine = (owner == number).astype(np.float32)
                covers[row, number] = cv2.resize(mine, covers.shape[:1:-1], interpolation=cv2.INTER_AREA)
        return torch.from_numpy(images), torch.from_numpy(labels), torch.from_numpy(covers)


def newest_first(rng: np.random.Generator, available: int, added: int, count: int) -> list[int]:
    """Which of a pool to use: what was just added, then others by chance."""
    return [*range(available - added, available), *rng.integers(0, available, count).tolist()][:count]


def start(model: reference.QueryMaskModel) -> None:
    """Queries begin as a grid of places, and the first heads of cross attention look near them."""
    predictor = model.head.predictor
    dim = predictor.query_embed.weight.shape[1]
    fine = sine_position(8 * GRID, 8 * GRID, dim, torch.device("cpu"), torch.float32).view(
        8 * GRID, 8 * GRID, dim
    )
    with torch.no_grad():
        predictor.query_embed.weight.copy_(fine[4::8, 4::8].flatten(0, 1))
        predictor.query_feat.weight.mul_(0.5)
        width = dim // 8
        # The fastest waves of y and of x: they alone tell neighbors on the grid apart.
        waves = [*range(width // 2), *range(dim // 2, dim // 2 + width // 2)]
        for layer in predictor.transformer_cross_attention_layers:
            layer.norm.weight.fill_(0.3)
            weight = layer.multihead_attn.in_proj_weight
            for head in range(6):
                for part in (0, dim):
                    rows = weight[part + head * width : part + (head + 1) * width]
                    rows.mul_(0.3)
                    rows[range(width), waves] += 2.0


class Teacher(nn.Module):
    """Tells the class of each place from the mask features and from the 1/8 level; only for training."""

    def __init__(self, dim: int, classes: int) -> None:
        super().__init__()
        self.fine, self.coarse = nn.Conv2d(dim, classes + 1, 1), nn.Conv2d(dim, classes + 1, 1)

    def forward(self, fine: Tensor, coarse: Tensor, labels: Tensor, covers: Tensor) -> Tensor:
        share, owner = covers.max(1)
        background = self.fine.out_channels - 1
        # Most places are background, which is learnt at once; the class is the hard part.
        weight = torch.ones(background + 1)
        weight[background] = 0.2
        truth = torch.where(share > 0.5, labels.gather(1, owner.flatten(1)).view_as(owner), background)
        return F.cross_entropy(self.fine(fine), truth, weight) + F.cross_entropy(
            self.coarse(coarse), truth[:, 1::2, 1::2], weight
        )


def criterion(
    config: ModelConfig, predictions: list[reference.Prediction], labels: Tensor, covers: Tensor
) -> dict[str, Tensor]:
    """The losses of :class:`fai_fast.losses.SetCriterion`, summed over all predictions, on every place of the grid."""
    masks = torch.stack([p.mask_logits for p in predictions]).flatten(3)
    classes = torch.stack([p.class_logits for p in predictions])
    layers, batch, queries, places = masks.shape
    truth = covers.flatten(2)
    counts = (labels >= 0).sum(1).tolist()
    total = max(sum(counts), 1)
    with torch.no_grad():
        probability = masks.sigmoid()
        cost_mask = F.softplus(masks).mean(-1, keepdim=True) - masks @ truth.mT / places
        cost_dice = 1 - (2 * probability @ truth.mT + 1) / (
            probability.sum(-1, keepdim=True) + truth.sum(-1)[:, None] + 1
        )
        wanted = labels.clamp(min=0)[None, :, None].expand(layers, -1, queries, -1)
        cost = (
            config.matcher_cost_mask * cost_mask
            + config.matcher_cost_dice * cost_dice
            - config.matcher_cost_class * classes.softmax(-1).gather(-1, wanted)
        ).numpy()
    layer_of, image_of, query_of, target_of = [], [], [], []
    for layer in range(layers):
        for image, count in enumerate(counts):
            rows, columns = linear_sum_assignment(cost[layer, image, :, :count])
            query_of.append(rows)
            target_of.append(columns)
            layer_of.append(np.full(count, layer))
            image_of.append(np.full(count, image))
    layer_at, image_at, query_at, target_at = (
        torch.from_numpy(np.concatenate(x)) for x in (layer_of, image_of, query_of, target_of)
    )
    no_object = classes.shape[-1] - 1
    expected = torch.full((layers, batch, queries), no_object)
    expected[layer_at, image_at, query_at] = labels[image_at, target_at]
    weight = torch.ones(no_object + 1)
    weight[no_object] = config.criterion_eos_coef
    # Every target is matched in every layer, so that the layers' weighted means have the same divisor.
    loss_ce = layers * F.cross_entropy(classes.flatten(0, 2), expected.flatten(), weight)
    logits, aim = masks[layer_at, image_at, query_at], truth[image_at, target_at]
    chance = logits.sigmoid()
    loss_dice = (1 - (2 * (chance * aim).sum(1) + 1) / (chance.sum(1) + aim.sum(1) + 1)).sum() / total
    loss_mask = F.binary_cross_entropy_with_logits(logits, aim, reduction="none").mean(1).sum() / total
    return {"loss_ce": loss_ce, "loss_mask": loss_mask, "loss_dice": loss_dice}


def plan(share: float, small: float, rng: np.random.Generator) -> tuple[tuple[int, int], int]:
    """Pictures' size and batch at a share of the time: small first, as they teach the most a second."""
    if share < small:
        return (128, 128), 16
    return BATCHES[rng.choice(len(BATCHES), p=BATCH_SHARES)]


def pretrain(backbone: nn.Module, dims: Sequence[int], minutes: float, log_every: int) -> None:
    """Teaches a backbone to tell single shapes apart, by linear classifiers of the means of res3, res4 and res5."""
    heads = nn.ModuleList(nn.Linear(dim, len(shapes.CLASSES)) for dim in dims[1:])
    optimizer = torch.optim.AdamW(
        [*backbone.parameters(), *heads.parameters()], 2e-3, weight_decay=0.02, fused=True
    )
    crops, step, right = Crops(0), 0, np.zeros(len(heads))
    crops.batch(1)
    mean, std = (
        torch.tensor(x).view(-1, 1, 1) for x in (make_spec().config.pixel_mean, make_spec().config.pixel_std)
    )
    began = time.monotonic()
    while (share := (time.monotonic() - began) / 60 / minutes) < 1:
        set_rate(optimizer, 2e-3, step, share)
        images, labels = crops.batch(48)
        features = backbone((images - mean) / std)
        logits = [head(feature.mean((2, 3))) for head, feature in zip(heads, features[1:], strict=True)]
        loss = torch.stack([F.cross_entropy(x, labels) for x in logits]).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        step += 1
        right += 0.03 * (np.array([(x.argmax(1) == labels).float().mean().item() for x in logits]) - right)
        if step % log_every == 0:
            print(
                f"single shapes {step:5d} {share * minutes:6.2f} min, right {right.round(2).tolist()}",
                flush=True,
            )


def set_rate(optimizer: torch.optim.Optimizer, rate: float, step: int, share: float) -> None:
    """A short rise, then half a cosine over the time there is, to a thousandth of the rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate * min(1.0, (step + 1) / 200) * (0.001 + 0.4995 * (1 + math.cos(math.pi * share)))


def train(args: argparse.Namespace) -> None:
    """Trains as the command line says, and keeps a checkpoint that is renewed every other minute."""
    out: Path = args.out
    spent, step, pretrained, small = 0.0, 0, args.pretrain, SMALL_SHARE
    state = torch.load(out, weights_only=True) if args.resume else None
    torch.manual_seed(0)
    spec = make_spec()
    if state is not None:
        names = ("seconds", "step", "pretrained_minutes", "small_share")
        spent, step, pretrained, small = (state[name] for name in names)
        model = reference.build(spec)
    elif args.start is not None:
        # The sizes that it is used at from the first step: what small pictures teach, it knows.
        pretrained, small = 0.0, 0.0
        model = load(None if args.start == Path() else args.start).train()
    else:
        model = reference.build(spec)
        start(model)
    model = model.to(memory_format=torch.channels_last)
    if state is None and pretrained > 0:
        backbone = model.pixel_decoder.backbone
        pretrain(backbone, list(spec.config.backbone_config.out_dims()), pretrained, args.log_every)
    teacher = Teacher(spec.config.pixel_decoder_feat_dim, len(shapes.CLASSES))
    everything = nn.ModuleList([model, teacher])
    config = spec.config
    optimizer = torch.optim.AdamW(everything.parameters(), args.lr, weight_decay=0.02, fused=True)
    average = copy.deepcopy(model).eval()
    if state is not None:
        everything.load_state_dict(state["trained"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["model"])
    pairs = zip(average.state_dict().values(), model.state_dict().values(), strict=True)
    floats = [(mean, value) for mean, value in pairs if mean.is_floating_point()]
    means: dict[str, float] = {}

    def save(seconds: float) -> None:
        temporary = out.with_suffix(".part")
        torch.save(
            {
                "model": average.state_dict(),
                "trained": everything.state_dict(),
                "optimizer": optimizer.state_dict(),
                "seconds": seconds,
                "step": step,
                "pretrained_minutes": pretrained,
                "small_share": small,
            },
            temporary,
        )
        temporary.replace(out)

    began, saved = time.monotonic() - spent, spent
    # Drawn beside the training; a resumed run draws others than before.
    scenes = Scenes(step, args.fresh, began=began, seconds=60 * args.minutes, small=small)
    batches = iter(DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=4))
    # Only where it is faster: in hardware, and for convolutions; attention of so few channels loses by the casts.
    bf16 = torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_avx512_bf16_supported())
    while (share := (seconds := time.monotonic() - began) / 60 / args.minutes) < 1:
        set_rate(optimizer, args.lr, step, share)
        pixels, labels, covers = next(batches)
        images = as_tensor(pixels)
        with bf16:
            fine, levels = model.pixel_decoder((images - model.pixel_mean) / model.pixel_std)
        fine, levels = fine.float(), [level.float() for level in levels]
        losses = criterion(config, model.head.predictor(fine, levels), labels, covers)
        losses["teacher"] = teacher(fine, levels[-1], labels, covers)
        loss = (
            config.weight_dict_loss_ce * losses["loss_ce"]
            + config.weight_dict_loss_mask * losses["loss_mask"]
            + config.weight_dict_loss_dice * losses["loss_dice"]
            + 3 * losses["teacher"]
        )
        if not torch.isfinite(loss):
            raise SystemExit(f"step {step}: the loss is {loss.item()}; resume with a smaller --lr")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(everything.parameters(), 2.0)
        optimizer.step()
        decay = min(0.998, (1 + step) / (10 + step))
        with torch.no_grad():
            torch._foreach_lerp_([mean for mean, _ in floats], [value for _, value in floats], 1 - decay)
        step += 1
        for name, value in losses.items():
            means[name] = 0.98 * means.get(name, value.item()) + 0.02 * value.item()
        if step % args.log_every == 0:
            text = " ".join(f"{name} {value:.3f}" for name, value in means.items())
            print(f"{step:6d} {seconds / 60:6.2f} min, {text}", flush=True)
        if seconds - saved > 120:
            saved = seconds
            save(seconds)
    save(60 * args.minutes)
    print(f"{out}: {step} steps", flush=True)


def load(checkpoint: Path | None) -> reference.QueryMaskModel:
    """The network of a checkpoint of :func:`train` or of a weights file; None for what the package holds."""
    if checkpoint is not None and checkpoint.suffix == ".pt":
        model = reference.build(make_spec())
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
        return model.eval()
    weights = load_weights(
        make_spec(), bundled_path(f"{NAME}.safetensors") if checkpoint is None else checkpoint
    )
    model = reference.build(weights.spec)
    model.load_state_dict(
        {name: torch.from_numpy(value) for name, value in weights.state.items()}, strict=False
    )
    return model.eval()


def detect(
    model: reference.QueryMaskModel, image: Image, threshold: float = 0.0, *, shaped: bool = False
) -> fai_fast.Detections:
    """What the network finds, by the package's own pre- and postprocessing: in a square, or in the picture's shape."""
    size = SHAPED.get(image.shape[:2], (IM_SIZE, IM_SIZE)) if shaped else (IM_SIZE, IM_SIZE)
    pixels = torch.from_numpy(fai_fast.preprocess(image, size, mean=0.0, std=1.0))
    with torch.inference_mode():
        output = model(pixels)
    return fai_fast.postprocess(
        output.mask_logits.numpy(),
        output.class_logits.numpy(),
        image.shape[:2],
        class_names=shapes.CLASSES,
        threshold=threshold,
        use_mask_score=True,
    )


def held_out_scenes(count: int) -> Iterator[shapes.Scene]:
    """Square ones, which the published figures are measured on."""
    return (shapes.scene(seed, HELD_OUT_SIZE) for seed in range(count))


def held_out_pictures(count: int) -> Iterator[shapes.Scene]:
    """As the sample: of a camera's sizes and shapes, which the network sees stretched to a square."""
    for index in range(count):
        yield shapes.scene(FIRST_PICTURE_SEED + index, PICTURE_SIZES[index % len(PICTURE_SIZES)])


def evaluate(
    model: reference.QueryMaskModel, scenes: Iterable[shapes.Scene], *, shaped: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """COCO's mask AP, and that of each class; percent."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    truth: list[dict[str, Any]] = []
    found: list[dict[str, Any]] = []
    pictures: list[dict[str, int]] = []
    for number, (image, labels, masks) in enumerate(scenes):
        pictures.append({"id": number, "height": image.shape[0], "width": image.shape[1]})
        for label, mask, rle in zip(
            labels, masks, fai_fast.PackedMasks.from_bool(masks).to_rle(), strict=True
        ):
            area = float(mask.sum())
            box = list(map(float, cv2.boundingRect(mask.astype(np.uint8))))
            truth.append(
                {"id": len(truth) + 1, "image_id": number, "category_id": int(label), "iscrowd": 0}
                | {"segmentation": rle, "area": area, "bbox": box}
            )
        detections = detect(model, image, shaped=shaped)
        for rle, label, score in zip(
            detections.to_rle(), detections.class_id, detections.confidence, strict=True
        ):
            found.append(
                {"image_id": number, "category_id": int(label), "segmentation": rle, "score": float(score)}
            )
    if not found:
        raise SystemExit("the network finds nothing at all")
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": pictures,
            "annotations": truth,
            "categories": [{"id": index, "name": name} for index, name in enumerate(shapes.CLASSES)],
        }
        coco.createIndex()
        measured = COCOeval(coco, coco.loadRes(found), "segm")
        measured.evaluate()
        measured.accumulate()
        measured.summarize()
    # precision: (thresholds, recalls, classes, areas, detections); -1 where a class does not occur.
    precision = measured.eval["precision"][:, :, :, 0, -1]
    metrics = {
        name: round(100 * float(value), 2) for name, value in zip(METRICS, measured.stats[:3], strict=True)
    }
    per_class = {
        name: round(100 * float(precision[:, :, index].mean()), 2)
        for index, name in enumerate(shapes.CLASSES)
    }
    return metrics, per_class


def ship(checkpoint: Path, scenes: int, pictures: int) -> None:
    """Writes weights (float16), registry entry and sample picture into the package."""
    from fai_fast.exporter.verify import make_reference_file
    from fai_fast.weights import load_weights
    from safetensors.torch import save_file

    state = torch.load(checkpoint, weights_only=True)
    weights = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in state["model"].items()
    }
    if wrong := [name for name, value in weights.items() if not torch.isfinite(value).all()]:
        raise SystemExit(f"{checkpoint}: {wrong[0]} does not fit into float16")
    target = bundled_path(f"{NAME}.safetensors")
    target.parent.mkdir(exist_ok=True)
    save_file(weights, target)
    target.chmod(0o644)
    # Where PyTorch is not installed, the exported graph is held against this.
    make_reference_file(load_weights(make_spec()), target.with_suffix(".reference.npz"))
    model = load(None)
    metrics, per_class = evaluate(model, held_out_scenes(scenes))
    on_pictures, _ = evaluate(model, held_out_pictures(pictures))
    before = (
        f"{state['pretrained_minutes']:.0f} minutes of its backbone alone"
        if state["small_share"]
        else "an earlier training, whose weights it began with"
    )
    note = (
        f"Made to try the package without a download: shapes of no use, drawn by tools/shapes.py. Trained by "
        f"tools/train_shapes.py for {state['seconds'] / 60:.0f} minutes ({state['step']:,} steps) on two cores of a "
        f"CPU that did other work too, after {before}. The figures are mask AP, measured with the weights of the "
        f"package on {scenes} scenes that it never saw; on {pictures} held-out pictures of 960x720 and 1280x720 it "
        f"is {on_pictures['segm/AP']}: python tools/train_shapes.py --evaluate."
    )
    entry = make_spec(metrics=metrics, per_class=per_class, metrics_im_size=IM_SIZE, note=note).to_dict()
    lines = (f"  {json.dumps(name)}: {json.dumps(value)}" for name, value in entry.items())
    (REGISTRY / f"{NAME}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", "utf-8")
    sample = write_sample()
    quantize_shapes.ship()
    print(f"{target}: {target.stat().st_size / 1e6:.2f} MB, {sample}: {sample.stat().st_size / 1e6:.2f} MB")
    report(f"{scenes} scenes", metrics, per_class)
    report(f"{pictures} pictures", on_pictures, {})


def write_sample() -> Path:
    """The picture of ``fai-fast demo``."""
    sample = REGISTRY / "samples" / "shapes.jpg"
    sample.parent.mkdir(exist_ok=True)
    picture = shapes.scene(SAMPLE_SEED, SAMPLE_SIZE, SAMPLE_OBJECTS).image
    cv2.imwrite(str(sample), picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    return sample


def report(of: str, metrics: dict[str, float], per_class: dict[str, float]) -> None:
    print(f"on {of} never seen:")
    for name, value in [*metrics.items(), *per_class.items()]:
        print(f"{name:10s} {value:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, metavar="FILE.pt", help="train, and keep the checkpoint here")
    what.add_argument(
        "--evaluate",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="measure a checkpoint (.pt) or weights (.safetensors); without a file, those of the package",
    )
    what.add_argument("--ship", type=Path, metavar="FILE.pt", help="put a checkpoint into the package")
    parser.add_argument("--minutes", type=float, default=174, help="of training; default: %(default)s")
    parser.add_argument(
        "--pretrain",
        type=float,
        default=4,
        metavar="MINUTES",
        help="of the backbone alone, before; default: %(default)s",
    )
    parser.add_argument(
        "--start",
        nargs="?",
        const=Path(),
        type=Path,
        metavar="FILE",
        help="begin with the weights of a checkpoint (.pt) or a .safetensors; without a file, those of the package",
    )
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint at --out")
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="the highest learning rate; default: %(default)s"
    )
    parser.add_argument("--fresh", type=int, default=2, help="new scenes a step; default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="of PyTorch; default: %(default)s")
    parser.add_argument("--log-every", type=int, default=100, metavar="STEPS", help="default: %(default)s")
    parser.add_argument(
        "--scenes",
        type=int,
        default=HELD_OUT_SCENES,
        help="square ones of 256x256 to evaluate on; default: %(default)s",
    )
    parser.add_argument(
        "--pictures",
        type=int,
        default=HELD_OUT_PICTURES,
        help="of 960x720 and 1280x720 to evaluate on; default: %(default)s",
    )
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    cv2.setNumThreads(1)
    if args.out is not None:
        train(args)
    elif args.ship is not None:
        ship(args.ship, args.scenes, args.pictures)
    else:
        model = load(None if args.evaluate == Path() else args.evaluate)
        report(f"{args.scenes} scenes", *evaluate(model, held_out_scenes(args.scenes)))
        report(f"{args.pictures} pictures", *evaluate(model, held_out_pictures(args.pictures)))
        found = evaluate(model, held_out_pictures(args.pictures), shaped=True)
        report(f"{args.pictures} pictures, in sizes of their shapes,", *found)


if __name__ == "__main__":
    main()
