"""What is asked of an open-vocabulary detector: phrases of several labels, and which tokens are whose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sam2_backend.dataset_messages import LabelText, Skipped

#: Longer is no name of an object, and would take the place of others.
_MAX_LETTERS = 200


def usable_texts(texts: Sequence[LabelText]) -> tuple[list[LabelText], list[Skipped]]:
    """Phrases with something in them, each once, and the others with the reason."""
    usable: list[LabelText] = []
    skipped: list[Skipped] = []
    for text in texts:
        phrase = " ".join(text.text.replace(".", " ").split()).lower()
        if not phrase:
            skipped.append(Skipped(text.label, "The label has no text to look for."))
        elif len(phrase) > _MAX_LETTERS:
            skipped.append(Skipped(text.label, f"The text to look for has more than {_MAX_LETTERS} letters."))
        elif any((phrase, text.label) == (known.text, known.label) for known in usable):
            skipped.append(Skipped(text.label, "The same text was asked for before."))
        else:
            usable.append(LabelText(text.label, phrase))
    return usable, skipped


def caption_groups(texts: Sequence[LabelText], tokenizer: Any, max_tokens: int) -> Iterator[tuple[list[LabelText], list[int], list[range]]]:
    """Phrases as captions "a cat. a dog." of at most max_tokens: (texts, token ids, the places of each text's tokens)."""
    start, end, stop = tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.convert_tokens_to_ids(".")
    group: list[LabelText] = []
    ids, places = [start], list[range]()
    for text in texts:
        tokens = tokenizer(text.text, add_special_tokens=False)["input_ids"][: max_tokens - 3]
        if len(ids) + len(tokens) + 2 > max_tokens:
            yield group, [*ids, end], places
            group, ids, places = [], [start], []
        places.append(range(len(ids), len(ids) + len(tokens)))
        ids += [*tokens, stop]
        group.append(text)
    if group:
        yield group, [*ids, end], places
