// Semantic results: which query wins each pixel. Written once and compiled per instruction set. Comes after
// panoptic.inl, which notes where nobody else can.
//
// Bytes. Logits are read where a query can still win, the segments (H * W bytes) written. One sigmoid runs
// per node that is used; pixels cost only where a boundary passes.

#include <algorithm>
#include <cstring>
#include <limits>

#include "csrc/cpu/kernels.h"
#include "csrc/cpu/simd.h"
#include "csrc/math/masks.h"

namespace fai::cpu::FAI_ISA {
namespace {

// ---- semantic masks

// Queries between a prefetch and its use.
inline constexpr int32_t kAhead = 6;

// Labels of a frame's pixels, of one byte or two.
struct Labels {
    void* data;
    int64_t columns;
    bool wide;

    // Pixels [x1, x2) of rows [y1, y2).
    FAI_HD void fill(int32_t value, int32_t x1, int32_t y1, int32_t x2, int32_t y2) const {
        for (int32_t y = y1; y < y2; ++y) {
            const int64_t at = y * columns + x1;
            if (wide) {
                std::fill_n(static_cast<uint16_t*>(data) + at, x2 - x1, static_cast<uint16_t>(value));
            } else {
                std::memset(static_cast<uint8_t*>(data) + at, value & 0xff, static_cast<size_t>(x2 - x1));
            }
        }
    }
    // The first n of 16 pixels.
    FAI_HD void store(const I32& label, int32_t x, int32_t y, int n) const {
        const int64_t at = y * columns + x;
        if (wide) {
            store_narrow(static_cast<uint16_t*>(data) + at, label, n);
        } else {
            store_narrow(static_cast<uint8_t*>(data) + at, label, n);
        }
    }
};

FAI_HD void grow(Region& region, int32_t x1, int32_t y1, int32_t x2, int32_t y2) {
    region.x1 = min_i32(region.x1, x1);
    region.y1 = min_i32(region.y1, y1);
    region.x2 = max_i32(region.x2, x2);
    region.y2 = max_i32(region.y2, y2);
}

// Less than any score times a probability, or by_logit times a logit.
template <bool by_logit>
inline constexpr float kWorthNothing = by_logit ? -std::numeric_limits<float>::infinity() : -1.0f;

// What is gathered about the pixels that are won.
enum class Gather {
    areas,
    sums,  // of mask probabilities
    own,   // areas of those that are the winner's own; the others are nobody's
};

// Gives all pixels of a rectangle to one query.
FAI_HD Region& give(const SemanticTask& task, const Candidate& candidate, int32_t x1, int32_t y1, int32_t x2,
                    int32_t y2) {
    Labels{task.segments, task.x.pixels, task.wide}.fill(candidate.query, x1, y1, x2, y2);
    Region& region = task.regions[candidate.position];
    grow(region, x1, y1, x2, y2);
    const int64_t area = static_cast<int64_t>(x2 - x1) * (y2 - y1);
    region.area += area;
    if (task.only_own) task.won[candidate.position] += area;
    return region;
}

// Decides the pixels of columns [x, x + n), n <= 16, of one cell row's pixel rows [y1, y2), each for one of
// the `count` contestants (indices of candidates, in order of their queries) with these scores. `corners`
// holds four vectors per contestant: its nodes above left, above right, below left and below right of each
// column.
template <Gather gather, bool of_logits, bool by_logit>
FAI_HD void semantic_argmax(const SemanticTask& task, const int32_t* contestants, const float* scores,
                            int32_t count, const float* corners, int32_t x, int n, int32_t y1, int32_t y2) {
    const Labels labels{task.segments, task.x.pixels, task.wide};
    const F32 across = load(task.x.fraction + x);
    for (int32_t y = y1; y < y2; ++y) {
        const F32 down = broadcast(task.y.fraction[y]);
        F32 best = broadcast(kWorthNothing<by_logit>), best_m = broadcast(0.0f);
        I32 winner = broadcast_int(0);
        for (int32_t c = 0; c < count; ++c) {
            const float* corner = corners + static_cast<int64_t>(c) * 4 * kLanes;
            const F32 left = math::lerp(load(corner), load(corner + 2 * kLanes), down);
            const F32 right = math::lerp(load(corner + kLanes), load(corner + 3 * kLanes), down);
            F32 m = math::lerp(left, right, across);
            if constexpr (of_logits && !by_logit) m = math::sigmoid(m);
            const F32 worth = m * broadcast(scores[c]);
            const Mask wins = math::wins(worth, best);
            best = select(wins, worth, best);
            if constexpr (gather != Gather::areas) best_m = select(wins, m, best_m);
            winner = select(wins, broadcast_int(c), winner);
        }
        uint32_t taken = 0xffffu;
        if constexpr (gather == Gather::own) {
            taken = bits(math::inside(best_m, broadcast(task.mask_threshold)));
        }
        I32 label = broadcast_int(-1);
        alignas(64) int32_t winners[kLanes];
        store(winners, winner);
        // Once for each contestant that won anything here, found at its first pixel.
        for (uint32_t open = low_bits(n); open;) {
            const int32_t c = winners[__builtin_ctz(open)];
            const Mask mine = equal(winner, broadcast_int(c));
            uint32_t won = bits(mine) & open;
            open &= ~won;
            const Candidate& candidate = task.candidates[contestants[c]];
            if constexpr (gather == Gather::own) {
                task.won[candidate.position] += __builtin_popcount(won);
                won &= taken;
                if (won == 0) continue;
                label = select(mask_of(won), broadcast_int(candidate.query), label);
            } else {
                label = select(mine, broadcast_int(candidate.query), label);
            }
            Region& region = task.regions[candidate.position];
            grow(region, x + __builtin_ctz(won), y, x + 32 - __builtin_clz(won), y + 1);
            region.area += __builtin_popcount(won);
            if constexpr (gather == Gather::sums) {
                region.sum += sum(select(mask_of(won), best_m, broadcast(0.0f)));
            }
        }
        labels.store(label, x, y, n);
    }
}

struct Bounds {
    F32 least, most;
};

// Bilinear values lie between their cell's smallest and largest corner, so a query can win in a cell only
// where its largest corner reaches the largest smallest corner of any, which `guaranteed` holds. Competitors
// come in order of falling score: once a score itself is below that in every cell of the block, all that
// follow are out without being read. The winners of the cell row above are looked at first, since they mostly
// win again.
template <class T, bool of_logits, bool resampled, bool by_logit = false>
void draw_segments_of(const SemanticTask& task) {
    const NodeGrid& grid = task.grid;
    const int32_t competitors = task.competitors;
    // The interpolation may round past a corner by a unit in the last place; of logits, which are larger, by
    // more. By logit the bounds themselves have room for that, and products round monotonically.
    constexpr float kSlack = by_logit ? 1.0f : of_logits ? 1.0001f : 1.000001f;
    const F32 slack = broadcast(kSlack);
    const F32 surely_own = broadcast(task.mask_threshold * kSlack);
    const F32 threshold = broadcast(task.mask_threshold);
    const OwnTask* const own = task.own;
    if (own) look_at_own<T>(task);

    const int64_t share = static_cast<int64_t>(competitors) * kLanes;
    float* node[2] = {task.scratch, task.scratch + share};  // of even rows, of odd rows
    float* upper = task.scratch + 2 * share;
    float* corners = task.scratch + 3 * share;
    int32_t* have[2] = {task.integers, task.integers + competitors};  // the row whose nodes are there
    int32_t* level[2] = {task.integers + 2 * competitors,
                         task.integers + 3 * competitors};  // 4 * row + level
    int32_t* examined = task.integers + 4 * competitors;    // the cell row it was last examined for
    int32_t* list = task.integers + 5 * competitors;        // those not ruled out, then contestants
    Candidate* candidates = task.candidates;
    BlockNodes<T, resampled> nodes(grid, task.scratch + 7 * share);

    for (int32_t block = 0; block < grid.columns; block += kBlockCells) {
        const int32_t cells = min_i32(grid.columns - block, kBlockCells);
        const int32_t x1 = task.x.first[block], x2 = task.x.first[block + cells];
        if (x1 == x2) continue;
        nodes.enter(block);
        const uint32_t valid = low_bits(cells);
        const auto logits_of = [&](int32_t position, int32_t row) {
            bool nan = false;
            const F32 v = nodes.row(task.query[position] * task.query_stride, row, nan);
            if (nan) task.has_nan[position] = 1;
            return v;
        };
        const auto level_of = [&](int32_t position, int32_t row) {
            int32_t& known = level[row & 1][position];
            if (known >> 2 != row) {
                const F32 v = logits_of(position, row);
                const auto all_below = [&](float logit) { return all(v < broadcast(logit)); };
                known = 4 * row;
                if (all_below(kLowLogit[1])) known += all_below(kLowLogit[2]) ? 2 : 1;
            }
            return known & 3;
        };
        const auto nodes_of = [&](int32_t position, int32_t row) {
            float* const kept = node[row & 1] + static_cast<int64_t>(position) * kLanes;
            if (have[row & 1][position] == row) return load(kept);
            have[row & 1][position] = row;
            F32 v = logits_of(position, row);
            v = of_logits ? math::bounded(v) : math::sigmoid(v);
            store(kept, v);
            return v;
        };
        // Probabilities that those of the cells right of the nodes' columns, between two rows, are not below,
        // and not above, but for `slack`.
        const auto bounds_of = [&](const F32& a, const F32& b) {
            const F32 low = minimum(a, b), high = maximum(a, b);
            F32 least = minimum(low, next_lane(low)), most = maximum(high, next_lane(high));
            if constexpr (of_logits) {
                // Steep ones round by a part of what lies between them.
                const F32 room = (most - least) * broadcast(1e-6f);
                least = by_logit ? least - room : math::sigmoid(least - room);
                most = by_logit ? most + room : math::sigmoid(most + room);
            }
            return Bounds{least, most};
        };
        for (int32_t k = 0; k < 5 * competitors; ++k) task.integers[k] = -1;
        int32_t count = 0;

        for (int32_t i = task.row_begin; i < task.row_end; ++i) {
            const int32_t y1 = task.y.first[i], y2 = task.y.first[i + 1];
            if (y1 == y2) continue;
            const int32_t below = min_i32(i + 1, grid.rows - 1);
            // Lanes without a cell never keep a competitor in.
            F32 guaranteed = select(mask_of(valid), broadcast(kWorthNothing<by_logit>),
                                    broadcast(by_logit ? -kWorthNothing<by_logit> : 2.0f));
            int32_t survivors = 0;
            const auto contend = [&](int32_t position, const Bounds& bounds) {
                const F32 score = broadcast(task.score[position]);
                guaranteed = maximum(bounds.least * score, guaranteed);
                store(upper + static_cast<int64_t>(position) * kLanes, bounds.most * score * slack);
                list[survivors++] = position;
            };
            const auto bounds_at = [&](int32_t position) {
                return bounds_of(nodes_of(position, i), nodes_of(position, below));
            };
            const auto examine = [&](int32_t position) {
                if (examined[position] == i) return;
                examined[position] = i;
                const F32 score = broadcast(task.score[position]);
                const int low = min_i32(level_of(position, below), level_of(position, i));
                if (low && all(guaranteed > score * broadcast(kLowProbability[low]))) return;
                contend(position, bounds_at(position));
            };
            const auto is_out = [&](int32_t position) {
                return all(guaranteed > broadcast(task.score[position]) * slack);
            };
            if (own) {
                const Noted here(task, i, below, block);
                if (own->weighted && here.is_decided() && !task.only_own) {
                    // It alone reaches the threshold, everywhere; in the rows between the same logits, too.
                    const int32_t position = here.first_inside();
                    while (i + 1 < task.row_end &&
                           grid.last_logits(min_i32(i + 2, grid.rows - 1)) <= here.last())
                        ++i;
                    const int32_t end = task.y.first[i + 1];
                    own->pixels[position] += static_cast<int64_t>(x2 - x1) * (end - y1);
                    give(task, {position, task.query[position], valid}, x1, y1, x2, end);
                    continue;
                }
                here.each_inside([&](int32_t position) {
                    own->pixels[position] += static_cast<int64_t>(x2 - x1) * (y2 - y1);
                    if (!is_out(position)) contend(position, bounds_at(position));
                });
                here.each_mixed([&](int32_t position) {
                    const Bounds bounds = bounds_at(position);
                    const float weight = own->weighted ? task.score[position] : 1.0f;
                    const F32 weights = broadcast(weight);
                    const uint32_t full = bits(bounds.least * weights >= surely_own) & valid;
                    const uint32_t empty = bits(bounds.most * weights * slack < threshold);
                    int64_t area = 0;
                    each_run(full, [&](int32_t from, int32_t to) {
                        area += static_cast<int64_t>(task.x.first[block + to] - task.x.first[block + from]) *
                                (y2 - y1);
                    });
                    each_run(valid & ~(full | empty), [&](int32_t from, int32_t to) {
                        area += count_in_cells<of_logits, by_logit>(task, nodes_of(position, i),
                                                                    nodes_of(position, below), weight, block,
                                                                    i, from, to);
                    });
                    own->pixels[position] += area;
                    contend(position, bounds);
                });
                for (int level = 0; level < kLevels; ++level) {
                    here.each_outside(level, [&](int32_t position) {
                        // What it is worth at most, and later ones are not worth more.
                        const float score = task.score[position];
                        const float of_threshold =
                            own->weighted ? task.mask_threshold : task.mask_threshold * score;
                        const float most = level == 0 ? of_threshold : kLowProbability[level] * score;
                        if (all(guaranteed > broadcast(most) * slack)) return false;
                        contend(position, bounds_at(position));
                        return true;
                    });
                }
            } else {
                for (int32_t c = 0; c < count; ++c) examine(candidates[c].position);
                for (int32_t position = 0; position < competitors && !is_out(position); ++position) {
                    // Each query's rows lie in pages of their own, which no hardware prefetcher follows.
                    if (position + kAhead < competitors) {
                        const T* const ahead =
                            nodes.source(task.query[position + kAhead] * task.query_stride, below);
                        __builtin_prefetch(ahead);
                        __builtin_prefetch(ahead + nodes.loaded() - 1);
                    }
                    examine(position);
                }
            }

            count = 0;
            bool all_own = true;
            for (int32_t k = 0; k < survivors; ++k) {
                const int32_t position = list[k];
                const uint32_t can_win =
                    bits(load(upper + static_cast<int64_t>(position) * kLanes) >= guaranteed) & valid;
                if (!can_win) continue;
                const Candidate candidate{position, by_logit ? position : task.query[position], can_win};
                int32_t at = count++;
                for (; at > 0 && candidates[at - 1].query > candidate.query; --at) {
                    candidates[at] = candidates[at - 1];
                }
                candidates[at] = candidate;
            }
            if (task.only_own && count == 1) {
                const int32_t position = candidates[0].position;
                const Bounds bounds = bounds_of(nodes_of(position, i), nodes_of(position, below));
                all_own = (bits(bounds.least >= surely_own) & valid) == valid;
            }
            if (count == 0) {
                constexpr int32_t kNobody = -1;
                Labels{task.segments, task.x.pixels, task.wide}.fill(kNobody, x1, y1, x2, y2);
            } else if (count == 1 && all_own && !(of_logits && task.want_sum)) {
                Region& region = give(task, candidates[0], x1, y1, x2, y2);
                if (!task.want_sum) continue;
                const F32 a = nodes_of(candidates[0].position, i),
                          b = nodes_of(candidates[0].position, below);
                const F32 rows = broadcast(static_cast<float>(y2 - y1));
                const F32 lower = broadcast(static_cast<float>(task.y.prefix[y2] - task.y.prefix[y1]));
                const F32 column = a * rows + (b - a) * lower;
                const F32 part = column * load(task.x.left_weight + block) +
                                 next_lane(column) * load(task.x.right_weight + block);
                region.sum += sum(select(mask_of(valid), part, broadcast(0.0f)));
            } else {
                for (int32_t x = x1; x < x2; x += kLanes) {
                    const int n = min_i32(x2 - x, kLanes);
                    // The cells that these pixels lie in, and who can win in one of them.
                    const int32_t from = task.x.cell[x] - block, to = task.x.cell[x + n - 1] - block;
                    const uint32_t here = low_bits(to + 1) & ~low_bits(from);
                    int32_t contestants = 0;
                    for (int32_t c = 0; c < count; ++c) {
                        if (candidates[c].cells & here) list[contestants++] = c;
                    }
                    if (contestants == 1 && !task.want_sum && !task.only_own) {
                        give(task, candidates[list[0]], x, y1, x + n, y2);
                        continue;
                    }
                    const I32 index = load(task.x.cell + x) - broadcast_int(block);
                    float* scores = upper;  // which has served its purpose
                    for (int32_t c = 0; c < contestants; ++c) {
                        const int32_t position = candidates[list[c]].position;
                        scores[c] = task.score[position];
                        const F32 a = nodes_of(position, i), b = nodes_of(position, below);
                        float* corner = corners + static_cast<int64_t>(c) * 4 * kLanes;
                        store(corner, permute(a, index));
                        store(corner + kLanes, permute(next_lane(a), index));
                        store(corner + 2 * kLanes, permute(b, index));
                        store(corner + 3 * kLanes, permute(next_lane(b), index));
                    }
                    const auto argmax = by_logit        ? semantic_argmax<Gather::areas, true, by_logit>
                                        : task.only_own ? semantic_argmax<Gather::own, of_logits, false>
                                        : task.want_sum ? semantic_argmax<Gather::sums, of_logits, false>
                                                        : semantic_argmax<Gather::areas, of_logits, false>;
                    argmax(task, list, scores, contestants, corners, x, n, y1, y2);
                }
            }
        }
    }
}

template <class T, bool resampled>
void draw_segments_on(const SemanticTask& task) {
    const auto draw = task.by_logit    ? draw_segments_of<T, true, resampled, true>
                      : task.of_logits ? draw_segments_of<T, true, resampled>
                                       : draw_segments_of<T, false, resampled>;
    draw(task);
}

template <class T>
void draw_segments(const SemanticTask& task) {
    if (task.grid.resampled()) {
        draw_segments_on<T, true>(task);
    } else {
        draw_segments_on<T, false>(task);
    }
}

}  // namespace
}  // namespace fai::cpu::FAI_ISA
