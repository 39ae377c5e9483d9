"""What each token of a byte-level tokenizer spells, sorted for walking an automaton."""

from __future__ import annotations

from typing import Any

from coordexp.runtime.errors import ModelError, located


class Vocabulary:
    """Bytes of the ordinary tokens (added tokens are left out), and the tokenizer's own cutting of a text.

    `plain` are ids of tokens that may stand anywhere inside a JSON string: whole UTF-8 characters, no quote,
    no backslash, no control character, and something visible. `others` holds the rest by first byte.
    """

    def __init__(self, tokenizer: Any):
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        entries = backend.get_vocab(with_added_tokens=False)
        added = set(backend.get_added_tokens_decoder())
        self.size = backend.get_vocab_size(with_added_tokens=True)
        self._backend = backend
        decode = _byte_decoder()
        self.spelling: dict[int, bytes] = {}
        try:
            for text, token in entries.items():
                if token not in added:
                    self.spelling[token] = bytes(decode[char] for char in text)
        except KeyError as error:
            fix = "the grammar reads byte-level BPE tokenizers, as every Qwen model has"
            raise ModelError(located("not a byte-level tokenizer", found=str(error), fix=fix)) from error
        self.plain: list[int] = []
        self.others: list[tuple[int, bytes]] = []
        self.by_first_byte: dict[int, list[tuple[int, bytes]]] = {}
        for token, data in sorted(self.spelling.items()):
            self.by_first_byte.setdefault(data[0], []).append((token, data))
            if _is_plain(data):
                self.plain.append(token)
            else:
                self.others.append((token, data))

    def cut(self, text: str) -> list[int]:
        """Token ids of `text`, special tokens included, nothing added."""
        return self._backend.encode(text, add_special_tokens=False).ids


def _is_plain(data: bytes) -> bool:
    if b'"' in data or b"\\" in data or min(data) < 0x20:
        return False
    try:
        return bool(data.decode("utf-8").strip())
    except UnicodeDecodeError:
        return False


def _byte_decoder() -> dict[str, int]:
    """Character -> byte of the byte-level alphabet: printable Latin-1 stands for itself, the rest from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(moved)}
