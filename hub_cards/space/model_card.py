"""What the card of a model says, in the words of the page."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from corpora.facts import FACTS
from judging.tables import NOTHING_SHOWN

UNJUDGED = "It has not been judged"


@dataclass(frozen=True)
class Card:
    """A card as far as these recipes wrote it.

    Attributes:
        warning: what comes before any answer, where the classifier has learned nothing; else empty.
        images: which images trained and judged it; empty where the card does not say.
        rates: figures by their names, each with its value and interval.
        results: all that the card states of them, in Markdown.
    """

    warning: str = ""
    images: str = ""
    rates: dict[str, tuple[float, float, float]] = field(default_factory=dict)
    results: str = "The model's card states no results."


def read_card(text: str) -> Card:
    """The parts of a card, those that are not there left empty."""
    claim = _between(text, "claim")
    # Its pictures are files of the repository: left out.
    results = re.sub(r"!\[[^]]*\]\([^)]*\)", "", _between(text, "results")).strip()
    # The table of a cross-validation has more columns before the figure of all folds.
    row = r"^\| ([^|\n]+?)(?: \(threshold [^|\n]+\))? \|(?:[^|\n]*\|)*? ([.\d]+) \| ([.\d]+) to ([.\d]+) \|$"
    images = re.search(r"^\| Images \| (.+) \|$", text, re.MULTILINE)
    return Card(
        warning=claim if NOTHING_SHOWN in claim or UNJUDGED in claim else "",
        images=images[1] if images else "",
        rates={name: tuple(float(value) for value in found) for name, *found in re.findall(row, results, re.MULTILINE)},
        results=results.replace("## ", "#### ") or Card.results,
    )


def _between(text: str, name: str) -> str:
    return text.partition(f"<!-- {name} -->")[2].partition(f"<!-- end of {name} -->")[0].strip()


def how_good(card: Card, class_names: Sequence[str], answer: str) -> str:
    """Sensitivity and specificity that the card states, in words: of the positive class, and of another answer."""
    said = []
    if len(class_names) == 2:
        stated = [
            name for name in class_names if re.search(rf"positive class, {re.escape(name)}(\.| \()", card.results)
        ]
        positive = (stated or class_names[1:])[0]
        said.append(_of(card, "{}", positive, "where its probability is above 0.5"))
    else:
        found = re.search(r"`binary_` are of (.+?) against the rest", card.results)
        positive = found[1] if found else None
        if answer != positive:
            said.append(_of(card, "{}_" + answer, answer, "where it is the most probable class"))
        if positive:
            said.append(_of(card, "binary_{}", positive, "where its probability is 0.5 or more"))
    said = " ".join(filter(None, said))
    return f"{said} Intervals are of 95\u00a0%." if said else "Its card states no sensitivity and specificity."


def _of(card: Card, called: str, name: str, threshold: str) -> str:
    rates = [card.rates.get(called.replace("{}", kind)) for kind in ("sensitivity", "specificity")]
    if None in rates:
        return ""
    found, cleared = (
        f"**{100 * value:.0f}** ({kind}, {100 * low:.0f} to {100 * high:.0f})"
        for kind, (value, low, high) in zip(("sensitivity", "specificity"), rates, strict=True)
    )
    told = f"Of 100 test images of {name} it finds {found}, of 100 others it clears {cleared}"
    return f"{told}, answering {name} {threshold}."


def on_whom(card: Card, corpus: str) -> str:
    """Which images a model knows, in words; empty where nothing tells."""
    title = FACTS[corpus].title if corpus in FACTS else corpus
    return ", ".join(filter(None, (title, card.images.removeprefix(corpus).lstrip(", "))))
