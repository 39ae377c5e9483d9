"""The bytes that each token of a byte-level BPE tokenizer represents."""

from __future__ import annotations

from typing import Any

from coordexp.runtime.errors import ModelError, located


class Vocabulary:
    """Bytes of every ordinary token (added tokens excluded), grouped for walking an automaton.

    spelling: token -> its bytes.
    special: text of an added token -> token.
    plain: tokens that are allowed anywhere inside a JSON string: complete UTF-8 characters without a quote, a
        backslash or a control character, at least one of them visible.
    others: the remaining tokens and their bytes.
    by_first_byte: first byte -> tokens and their bytes.
    size: number of token ids, added tokens included.
    """

    def __init__(self, tokenizer: Any):
        backend = getattr(tokenizer, "backend_tokenizer", tokenizer)
        entries = backend.get_vocab(with_added_tokens=False)
        added = {token: entry.content for token, entry in backend.get_added_tokens_decoder().items()}
        self.special = {content: token for token, content in added.items()}
        self._added = {token: content.encode() for token, content in added.items()}
        self.size = backend.get_vocab_size(with_added_tokens=True)
        self._backend = backend
        decode = _byte_decoder()
        self.spelling: dict[int, bytes] = {}
        try:
            for text, token in entries.items():
                if token not in added:
                    self.spelling[token] = bytes(decode[char] for char in text)
        except KeyError as error:
            fix = "use a byte-level BPE tokenizer, as in every Qwen model"
            raise ModelError(located("the tokenizer is not byte-level", found=str(error), fix=fix)) from error
        self.plain: list[int] = []
        self.others: list[tuple[int, bytes]] = []
        self.by_first_byte: dict[int, list[tuple[int, bytes]]] = {}
        for token, data in sorted(self.spelling.items()):
            self.by_first_byte.setdefault(data[0], []).append((token, data))
            if _is_plain(data):
                self.plain.append(token)
            else:
                self.others.append((token, data))

    def bytes_of(self, token: int) -> bytes:
        """The bytes of an ordinary or an added token; b"" for an id that is neither."""
        return self.spelling.get(token) or self._added.get(token, b"")

    def tokenize(self, text: str) -> list[int]:
        """Token ids of `text`; special tokens in it are recognised, none are added."""
        return self._backend.encode(text, add_special_tokens=False).ids


def _is_plain(data: bytes) -> bool:
    if b'"' in data or b"\\" in data or min(data) < 0x20:
        return False
    try:
        return bool(data.decode("utf-8").strip())
    except UnicodeDecodeError:
        return False


def _byte_decoder() -> dict[str, int]:
    """Character -> byte in the GPT-2 byte-level alphabet.

    Printable Latin-1 characters represent themselves; the other bytes are mapped to U+0100 and above.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(0x100) if byte not in printable]
    table = {chr(byte): byte for byte in printable}
    return table | {chr(0x100 + n): byte for n, byte in enumerate(moved)}
