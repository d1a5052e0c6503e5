"""Edits that break the code on purpose, by room, each with the tests that must notice; `make mutations` tries them."""

from mutations import corpora, folds, hub, images, judging, package, scripts, training

MUTATIONS = [
    mutation
    for room in (package, corpora, images, training, folds, judging, hub, scripts)
    for mutation in room.MUTATIONS
]
