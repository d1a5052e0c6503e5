"""Which images that look alike are kept on one side of a split, and what is told where too few groups are left."""

from collections.abc import Sequence

from images.fingerprint import SimilarPair


def pairs_that_join(pairs: Sequence[SimilarPair], patients: Sequence[str | None], rule: str) -> list[SimilarPair]:
    """The pairs whose images are kept in one group.

    Args:
        pairs: of images that show the same.
        patients: of each image, `None` where unknown.
        rule: join: all of the pairs; copies: those of the same picture; patients: none of two known patients, but of
            the same bytes.
    """
    if rule == "join":
        return list(pairs)
    if rule == "copies":
        return [pair for pair in pairs if pair.is_copy]
    return [pair for pair in pairs if pair.identical or None in (patients[pair.first], patients[pair.second])]


def told_of_few_groups(
    num_folds: int,
    rule: str,
    classes: Sequence[str | None],
    patients: Sequence[str | None],
    groups: Sequence[str],
    joined: Sequence[SimilarPair],
    names: Sequence[str],
) -> str:
    """Of the first class with fewer groups than folds: how that came, with a pair to look at, and what may help.

    Args:
        num_folds: of the splits.
        rule: of `pairs_that_join`.
        classes, patients, groups, names: of each image; the classes and patients `None` where unknown.
        joined: the pairs that were joined.

    Returns:
        Sentences; empty where likeness joined nothing in a class with too few groups.
    """
    for label in sorted({name for name in classes if name is not None}):
        chosen = [i for i, name in enumerate(classes) if name == label]
        known = {patients[i] for i in chosen} - {None}
        before = len(known) + sum(patients[i] is None for i in chosen)
        after = {groups[i] for i in chosen}
        apart = [
            pair
            for pair in joined
            if not pair.identical
            and groups[pair.first] in after
            and (patients[pair.first] != patients[pair.second] or patients[pair.first] is None)
        ]
        if len(after) < min(num_folds, before) and apart:
            pair = min(apart, key=lambda pair: (-pair.bits, pair.correlation))
            ends = f"'{names[pair.first]}' and '{names[pair.second]}'"
            of_patients = all(patients[i] is not None for i in (pair.first, pair.second))
            other = "patients" if of_patients else "copies" if not pair.is_copy else None
            told = (
                f"Class {label}: of {before} {'patients' if known else 'images'} {len(after)} group(s) are left, since "
                f"images look alike, such as {ends} ({pair.bits} of 256 bits differ, correlation "
                f"{pair.correlation:.2f}; the least alike of {len(apart)} pairs)"
            )
            if other is None or other == rule:
                return told
            return f"{told}. If these do not show the same, pass --near_identical {other}"
    return ""
