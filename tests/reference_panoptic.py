"""The truth of panoptic results, beside reference.py: float64 NumPy, slow and obvious. Never imports fai_fast."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import reference
from reference import PIXEL_TOLERANCE, SCORE_TOLERANCE


@dataclass
class Truth:
    """What every query is, and where float32 may decide otherwise."""

    size: tuple[int, int]
    score: np.ndarray  # (Q,)
    class_id: np.ndarray  # (Q,)
    competes: np.ndarray  # (Q,) bool
    stuff: frozenset[int]
    certain: np.ndarray  # (Q, H, W) bool: won under every rounding within PIXEL_TOLERANCE
    possible: np.ndarray  # (Q, H, W) bool: won under some rounding
    own_certain: np.ndarray  # (Q, H, W) bool: likewise, of the query's own pixels
    own_possible: np.ndarray
    valid: np.ndarray  # (Q,) bool: a segment under every rounding
    maybe_valid: np.ndarray  # (Q,) bool: under some
    unclear: bool  # whether a query competes, or of which class it is, hangs on a rounding

    def segment(self, query):
        """The queries that may be in one segment with this one, itself among them."""
        if self.class_id[query] not in self.stuff:
            return [query]
        return [q for q in np.flatnonzero(self.competes).tolist() if self.class_id[q] == self.class_id[query]]


def ratio_above(won, own, threshold):
    """As torch divides two integers, and Python compares."""
    return bool(won > 0 and own > 0 and float(np.float32(won) / np.float32(own)) > threshold)


def panoptic(
    mask_logits,
    class_logits,
    size,
    *,
    threshold=0.5,
    mask_threshold=0.5,
    stuff=(),
    overlap_threshold=0.8,
    weighted=True,
    class_activation="softmax",
    letterbox=None,
    **resampling,
):
    """Every query's truth. `letterbox` = (input, content, offset), each (vertical, horizontal); `resampling` as
    reference.postprocess has it."""
    class_logits = np.asarray(class_logits, np.float64).reshape(np.shape(class_logits)[-2:])
    every = reference.postprocess(
        mask_logits, class_logits, size, class_activation=class_activation, letterbox=letterbox, **resampling
    )
    score = np.where(every.dropped, 0.0, every.class_score)
    classes = class_logits[:, :-1] if class_activation == "softmax" else class_logits
    best = np.nan_to_num(classes, nan=-np.inf).max(axis=1)
    is_class = best >= class_logits[:, -1] if class_activation == "softmax" else np.full(len(best), True)
    competes = ~every.dropped & is_class & (score.astype(np.float32) > np.float32(threshold))
    near = np.abs(score - threshold) < 1e-6
    doubtful = ~every.dropped & is_class & near & (score.astype(np.float32) != np.float32(threshold))
    # Of several classes whose probabilities are equal in float32, the largest logit's is as right.
    for q in np.flatnonzero(competes):
        close = every.probability[q] >= every.probability[q].max() - 2e-7
        doubtful[q] |= classes[q][close].max() != classes[q][close].min()

    who = competes[:, None, None]
    m = every.m
    value = np.where(who, score[:, None, None] * m, -np.inf)
    ranked = np.sort(np.concatenate([np.full((2, *every.size), -np.inf), value]), axis=0)
    best, second = ranked[-1], ranked[-2]
    winner = (np.arange(len(m))[:, None, None] == value.argmax(axis=0)) & who
    with np.errstate(invalid="ignore"):
        alone = np.isinf(second) | (best - second >= PIXEL_TOLERANCE)
    own = score[:, None, None] * m if weighted else m
    certain, possible = winner & alone, who & (value >= best - PIXEL_TOLERANCE)
    own_certain = who & (own >= mask_threshold + PIXEL_TOLERANCE)
    own_possible = who & (own >= mask_threshold - PIXEL_TOLERANCE)
    if mask_threshold <= 0:
        own_certain = np.broadcast_to(who, m.shape)

    count = len(m)
    valid, maybe = np.zeros(count, bool), np.zeros(count, bool)
    for q in np.flatnonzero(competes):
        least, most = certain[q].sum(), possible[q].sum()
        fewest, largest = own_certain[q].sum(), own_possible[q].sum()
        kept_certain = certain[q] if weighted else certain[q] & own_certain[q]
        kept_possible = possible[q] if weighted else possible[q] & own_possible[q]
        valid[q] = kept_certain.any() and fewest > 0 and ratio_above(least, largest, overlap_threshold)
        # Of no pixel that is surely its own, one may be.
        maybe[q] = (
            kept_possible.any() and largest > 0 and ratio_above(most, max(fewest, 1), overlap_threshold)
        )
    return Truth(
        size=every.size,
        score=score,
        class_id=every.class_id,
        competes=competes,
        stuff=frozenset(stuff),
        certain=certain if weighted else certain & own_certain,
        possible=possible if weighted else possible & own_possible,
        own_certain=own_certain,
        own_possible=own_possible,
        valid=valid,
        maybe_valid=maybe,
        unclear=bool(doubtful.any()),
    )


def assert_matches(truth, rows):
    """Fails unless the rows (attributes query, class_id, confidence, xyxy, area, mask of shape (N, H, W)) are what the
    specification says, except for decisions that float32 rounding may turn, and what follows from those."""
    count = len(rows.query)
    assert rows.mask.shape == (count, *truth.size)
    assert rows.mask.sum(axis=0).max(initial=0) <= 1, "segments overlap"
    assert len(set(rows.query.tolist())) == count
    of_query = {query: i for i, query in enumerate(rows.query.tolist())}
    for query, i in of_query.items():
        mask, members = rows.mask[i], truth.segment(query)
        assert truth.competes[query], f"query {query} does not compete"
        assert truth.maybe_valid[query], f"query {query} is no segment"
        assert rows.class_id[i] == truth.class_id[query]
        assert abs(rows.confidence[i] - truth.score[query]) <= SCORE_TOLERANCE
        assert rows.area[i] == mask.sum() >= 1
        assert tuple(rows.xyxy[i]) == reference.tight_box(mask), f"query {query}: box"
        allowed = np.zeros(truth.size, bool)
        for member in members:
            if truth.maybe_valid[member] and member >= query:
                allowed |= truth.possible[member]
            assert not (truth.valid[member] and member < query), (
                f"query {member} is of {query}'s segment, before it"
            )
        assert not (mask & ~allowed).any(), f"query {query}: pixels that none of its segment can have won"
    taken = rows.mask.any(axis=0)
    for query in np.flatnonzero(truth.valid).tolist():
        [row] = [of_query[q] for q in truth.segment(query) if q in of_query] or [None]
        assert row is not None, f"query {query}'s segment is missing"
        missing = truth.certain[query] & ~rows.mask[row]
        assert not missing.any(), f"query {query}: {missing.sum()} of its pixels are not its segment's"
    for query in np.flatnonzero(truth.competes & ~truth.maybe_valid).tolist():
        wrong = truth.certain[query] & taken
        assert not wrong.any(), f"query {query} is no segment, but {wrong.sum()} of its pixels are somebody's"
    order = sorted(range(count), key=lambda i: (-rows.confidence[i], rows.query[i]))
    assert order == list(range(count)), "rows are not in order of falling score, ties by query"
