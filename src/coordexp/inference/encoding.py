"""Model inputs of requests, prepared in threads while the accelerator decodes, and their left-padded batches."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch
import torch.nn.functional as F

Inputs = dict[str, torch.Tensor]
Item = TypeVar("Item")


def encoded_ahead(
    items: Iterable[Item], encode: Callable[[Item], Inputs], ahead: int, workers: int
) -> Iterator[tuple[Item, Inputs]]:
    """Each item with its inputs, in order; `workers` threads encode up to `ahead` items before they are needed.

    With 0 workers an item is encoded when it is asked for. An error of `encode` is raised at its item.
    """
    if not workers:
        yield from ((item, encode(item)) for item in items)
        return
    waiting = iter(items)
    queue: deque[tuple[Item, Future[Inputs]]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="encode") as pool:
        try:
            while True:
                queue += [(item, pool.submit(encode, item)) for item in itertools.islice(waiting, ahead - len(queue))]
                if not queue:
                    return
                item, future = queue.popleft()
                yield item, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def left_padded(encoded: Sequence[Inputs], pad_id: int) -> Inputs:
    """One batch from the inputs of single requests, as the processor would write it.

    Tensors [1, L] of the text are padded on the left: `input_ids` with `pad_id`, all others with 0. Those of the images
    have no batch dimension and are concatenated.
    """
    length = max(inputs["input_ids"].shape[1] for inputs in encoded)
    batch = {}
    for name in encoded[0]:
        parts = [inputs[name] for inputs in encoded]
        if parts[0].shape == encoded[0]["input_ids"].shape:
            fill = pad_id if name == "input_ids" else 0
            parts = [F.pad(part, (length - part.shape[1], 0), value=fill) for part in parts]
        batch[name] = torch.cat(parts)
    return batch
