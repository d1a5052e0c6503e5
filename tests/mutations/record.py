"""What an edit is."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutation:
    """One edit.

    Attributes:
        file: the file it is made in, from the root of the repository.
        old: text that stands in that file exactly once.
        new: what takes its place.
        tests: pytest node ids, separated by blanks; at least one of these tests must fail.
    """

    file: str
    old: str
    new: str
    tests: str
