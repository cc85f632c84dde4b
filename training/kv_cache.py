"""A key-value cache that has room for what comes, for sampling with transformers on a CPU.

The library's own layer copies the whole cache for every token. On two cores that was a third of the time of
sampling (docs/LOG.md, 2026-11-27). Keys and values are the same to the last bit.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

ROOM = 128
"""Tokens by which a full buffer grows."""


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of one layer, (batch, heads, length, head size), at the beginning of a longer buffer.

    Importing this module makes it the layer of every cache of full attention (`_layer_type`).
    """

    _layer_type = "full_attention"
    keys: torch.Tensor
    values: torch.Tensor

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        self._buffers: list[torch.Tensor | None] = [None, None]
        self._views: list[torch.Tensor | None] = [None, None]

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append, and return everything."""
        if torch.is_grad_enabled():  # a buffer that is written again cannot be differentiated
            return super().update(key_states, value_states, *args, **kwargs)  # type: ignore[no-any-return]
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        self.keys = self._append(0, self.keys, key_states, length)
        self.values = self._append(1, self.values, value_states, length)
        return self.keys, self.values

    def _append(self, which: int, old: torch.Tensor, new: torch.Tensor, length: int) -> torch.Tensor:
        buffer, end = self._buffers[which], length + new.shape[-2]
        # Another tensor stands in the view's place after a crop, a reordering, or an update with gradients.
        if buffer is None or old is not self._views[which] or buffer.shape[-2] < end:
            buffer = new.new_empty((*new.shape[:-2], end + ROOM, new.shape[-1]))
            if length:
                buffer[..., :length, :] = old
            self._buffers[which] = buffer
        buffer[..., length:end, :] = new
        view = self._views[which] = buffer[..., :end, :]
        return view
