"""Set targets of an answer: soft targets at the positions where any of several remaining objects could come next.

At the first token at which the remaining objects differ, the target is spread over all of them: over the tokens that
continue their descriptions and, among objects with the same description, over their first coordinate. At all other
positions the token of the answer is the only target.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

from coordexp.answers.formats import format_of
from coordexp.answers.render import PromptStyle
from coordexp.records import Object, coord_bin
from coordexp.runtime.errors import DataError

Encode = Callable[[str], list[int]]


class BranchTargets(NamedTuple):
    """Soft targets of one answer, as plain tuples.

    text: (position among the supervised labels, token id, weight). slots: (slot, bin, coordinate in [0, 1], weight).
    """

    text: list[tuple[int, int, float]]
    slots: list[tuple[int, int, float, float]]


def branch_targets(
    objects: Sequence[Object],
    labels: Sequence[int],
    is_slot: Sequence[bool],
    style: PromptStyle,
    encode: Encode,
    supervised: Sequence[bool] | None = None,
) -> BranchTargets:
    """Soft targets at the branch positions of an answer.

    labels: the supervised ids of the answer, in order. is_slot: which of them are coordinates. encode: text to ids,
    as the answer was encoded. supervised: which objects are targets, all by default; the others are context, without
    labels. DataError when a description has other ids by itself than inside its answer.
    """
    supervised = [True] * len(objects) if supervised is None else supervised
    targets = BranchTargets([], [])
    slot_positions = [position for position, slot in enumerate(is_slot) if slot]
    answer_format = format_of(style)
    items = [answer_format.item(obj) for obj in objects]
    previous, start, slot = None, 0, 0
    for i, obj in enumerate(objects):
        if not supervised[i]:
            previous = items[i]
            continue
        end = slot_positions[slot]
        remaining = [j for j in range(i, len(objects)) if supervised[j]]
        following = [remaining[j] for j in answer_format.candidates(previous, [items[j] for j in remaining])]
        heads = [answer_format.between(previous, items[j]) for j in following]
        encoded = {head: encode(head) for head in set(heads)}
        if encoded[heads[0]] != list(labels[start:end]):
            fix = "set custom.loss.set_targets: none for this data"
            raise DataError(f"description {obj.desc!r} is encoded differently inside its answer\n  -> {fix}")
        same = _add_text_branches(targets, [encoded[head] for head in heads], start)
        if len(same) > 1:
            candidates = [objects[following[j]] for j in same]
            targets.slots.extend((slot, coord_bin(o.coords[0]), o.norm[0], 1 / len(candidates)) for o in candidates)
        slot += len(obj.coords)
        previous, start = items[i], slot_positions[slot - 1] + 1
    return targets


def _add_text_branches(targets: BranchTargets, candidates: list[list[int]], start: int) -> list[int]:
    """Add the branches along the first candidate's ids; returns the indices of the candidates with equal ids."""
    alive = list(range(len(candidates)))
    for step, token in enumerate(candidates[0]):
        options = Counter(candidates[j][step] for j in alive)
        if len(options) > 1:
            targets.text.extend((start + step, option, n / len(alive)) for option, n in sorted(options.items()))
        alive = [j for j in alive if candidates[j][step] == token]
    return [j for j in alive if len(candidates[j]) == len(candidates[0])]
