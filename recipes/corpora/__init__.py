"""One module a corpus: each knows the folder layout in which people download that corpus, and nothing else."""
