"""Edits of the scripts of recipes/ and what all of it stands on."""

from mutations.record import Mutation

MUTATIONS = [
    Mutation(
        "recipes/cross_validate.py",
        "        open_repository(Publication(",
        "        print(Publication(",
        "tests/test_repository.py::test_a_repository_that_is_not_ours_is_known_before_the_training[cross_validate]",
    ),
    Mutation(
        "recipes/explain.py",
        "    output = check_output(args.output_dir)",
        "    output = Path(args.output_dir)",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/explain.py",
        '"bad_images": args.bad_images}',
        "}",
        "tests/test_corpora.py::test_bad_images_are_skipped_by_every_script",
    ),
    Mutation(
        "recipes/explain.py",
        "        bad_images=args.bad_images,\n",
        "",
        "tests/test_decoding.py::test_explaining_leaves_bad_images_out_by_name",
    ),
    Mutation(
        "recipes/output_folder.py",
        "    if old.is_dir() and any(old.iterdir()):",
        "    if False:",
        "tests/test_files.py::test_former_content_that_was_never_put_back_is_not_deleted",
    ),
    Mutation(
        "recipes/output_folder.py",
        '    old.rename(staging / "replaced")',
        "    pass",
        "tests/test_files.py::test_a_kill_after_the_exchange_leaves_nothing_to_be_put_back",
    ),
    Mutation(
        "recipes/output_folder.py",
        "prefix=FILE_STAGING",
        "prefix=STAGING",
        "tests/test_files.py::test_a_file_that_is_being_written_survives_a_folder_that_is_replaced_beside_it",
    ),
    Mutation(
        "recipes/output_folder.py",
        "if entry != new.parent and (ours is None or entry.name in ours or entry.name in coming)",
        "if entry != new.parent",
        "tests/test_files.py::test_an_overwritten_corpus_keeps_what_prepare_corpus_did_not_write",
    ),
    Mutation(
        "recipes/output_folder.py",
        "            target.rename(source)",
        "            pass",
        "tests/test_files.py::test_an_entry_that_cannot_be_moved_leaves_what_was_there",
    ),
    Mutation(
        "recipes/output_folder.py",
        "    if path.is_dir() and (path.is_symlink() or path.is_mount()):",
        "    if path.is_dir() and path.is_mount():",
        "tests/test_files.py::test_deleting_keeps_the_link_and_what_it_does_not_hold",
    ),
    Mutation(
        "recipes/output_folder.py",
        "    if not existing.is_dir():",
        "    if existing.is_file() and existing == output:",
        "tests/test_files.py::test_a_folder_that_cannot_be_written_is_known_before_the_work",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        '    if occupied and not (output / "splits.json").is_file():',
        "    if False:",
        "tests/test_files.py::test_a_corpus_is_not_prepared_into_a_folder_of_something_else",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "if args.data_dir is not None and output.resolve().is_relative_to(",
        "if False and output.resolve().is_relative_to(",
        "tests/test_prepare_corpus.py::test_a_data_set_inside_the_download_is_refused",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "sorted(publishable(file, args.salt) for file in files)",
        "sorted(reason for _, reason in files)",
        "tests/test_names.py::test_nothing_that_is_published_names_files_patients_or_this_machine",
    ),
    Mutation(
        "recipes/prepare_corpus.py",
        "known_name(args.corpus, args.data_dir) or args.corpus",
        "args.corpus",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/publish.py",
        'loaded_back = None if args.repo_type == "space" else folder',
        'loaded_back = None if args.repo_type != "model" else folder',
        "tests/test_repository.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/publish.py",
        '        print("\\n".join(shown(publication)))\n        return\n',
        '        print("\\n".join(shown(publication)))\n',
        "tests/test_repository.py::test_what_others_wrote_is_replaced_only_if_one_says_so",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "np.bincount(group, ours - theirs)",
        "np.bincount(group, theirs - ours)",
        "tests/test_benchmarks.py::test_differences_are_points_with_the_spread_of_seeds_and_groups",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "seeds = random.integers(0, len(results), len(results))",
        "seeds = range(len(results))",
        "tests/test_benchmarks.py::test_differences_are_points_with_the_spread_of_seeds_and_groups",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "drawn = random.integers(0, len(size), len(size))",
        "drawn = np.arange(len(size))",
        "tests/test_benchmarks.py::test_differences_are_points_with_the_spread_of_seeds_and_groups",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "group = np.array(result[",
        "group = np.arange(len(ours)) if True else np.array(result[",
        "tests/test_benchmarks.py::test_differences_are_points_with_the_spread_of_seeds_and_groups",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "train, test = split_held_out(images, options.num_test_images, seed)",
        "train, test = split_held_out(images, options.num_test_images, 0)",
        "tests/test_benchmarks.py::test_texture_learning_holds_out_whole_groups_and_trains_on_the_rest",
    ),
    Mutation(
        "recipes/benchmarks/texture_learning.py",
        "for name, (train, _) in parts.items():",
        "for name, (_, train) in parts.items():",
        "tests/test_benchmarks.py::test_texture_learning_holds_out_whole_groups_and_trains_on_the_rest",
    ),
    Mutation(
        "recipes/benchmarks/readouts.py",
        "attention = (x @ query / x.shape[-1] ** 0.5).softmax(1)",
        "attention = (x @ query * 0).softmax(1)",
        "tests/test_benchmarks.py::test_the_learned_query_reads_the_token_that_tells",
    ),
    Mutation(
        "recipes/benchmarks/readouts.py",
        "[distance * dy, distance * dx]",
        "[dy, dx]",
        "tests/test_benchmarks.py::test_classical_features_are_those_of_the_matrices",
    ),
    Mutation(
        "recipes/explain.py",
        'if getattr(self, name) is not None and self.method != "occlusion":',
        'if getattr(self, name) is not None and self.method == "rollout":',
        "tests/test_surprise.py::test_the_script_draws_surprise_of_an_encoder",
    ),
    Mutation(
        "recipes/explain.py",
        "own = {} if channels == 3 else",
        "own = {} if True else",
        "tests/test_surprise.py::test_the_script_draws_surprise_of_an_encoder",
    ),
]
