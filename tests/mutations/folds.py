"""Edits of what cross_validate.py runs, in recipes/training."""

from mutations.record import Mutation

MUTATIONS = [
    Mutation(
        "recipes/training/cross_validation.py",
        "SHARE_TO_ESTIMATE, SECONDS_TO_ESTIMATE = 0.05, 600",
        "SHARE_TO_ESTIMATE, SECONDS_TO_ESTIMATE = 0.005, 600",
        "tests/test_progress.py::test_no_time_is_estimated_from_the_start_of_the_first_training",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "                self.bar.initial += share\n",
        "                pass\n",
        "tests/test_progress.py::test_the_time_left_is_by_what_was_done_since_the_start",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        'if training["max_steps"] > 0:',
        "if False:",
        "tests/test_progress.py::test_how_far_a_training_is",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "    args.output_dir = str(output)  # without ~\n",
        "",
        "tests/test_cross_validate.py::test_cross_validation_writes_to_the_home_folder_alone_where_that_is_asked_for",
    ),
    Mutation(
        "recipes/training/fold_options.py",
        'key.replace("-", "_") + sign',
        "key + sign",
        "tests/test_cross_validate.py::test_options_with_dashes_are_those_with_underscores "
        "tests/test_cross_validate.py::test_the_check_before_a_pretraining_sees_one_gpu_and_the_sizes_to_come",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "            if option in taken:",
        "            if False:",
        "tests/test_cross_validate.py::test_what_is_set_for_each_fold_is_not_taken_as_an_option",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "settings, _ = as_told_now(",
        "as_told_now(",
        "tests/test_cross_validate.py::test_folds_that_were_not_trained_alike_are_told",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "else name not in OF_A_FOLD[step][section]:",
        "else True:",
        "tests/test_cross_validate.py::test_folds_that_were_not_trained_alike_are_told",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "compared[name] = tuple(by_name(entries) for entries in compared[name])",
        "pass",
        "tests/test_cross_validate.py::test_settings_that_say_the_same_are_the_same",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "if path in used and before.get",
        "if before.get",
        "tests/test_cross_validate.py::test_folds_of_encoders_that_were_replaced_are_not_mixed",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        'settings["checkpoint_sha256"] = before | now',
        "pass",
        "tests/test_cross_validate.py::test_folds_of_encoders_that_were_replaced_are_not_mixed",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "given and os.path.expanduser(given)",
        "given",
        "tests/test_cross_validate.py::test_cross_validation_reads_from_the_home_folder",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "*_of_fold(args, fold), *_options(args.pretrain_options)]",
        '"--corpus", args.corpus, *_options(args.pretrain_options)]',
        "tests/test_cross_validate.py::test_the_command_line_of_cross_validate",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "*_options(args.finetune_options), *positive]\n",
        "*positive]\n",
        "tests/test_cross_validate.py::test_the_command_line_of_cross_validate",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "    _rehearse_fine_tuning(args, folds[0], first)\n",
        "",
        "tests/test_cross_validate.py::test_a_mistake_in_the_fine_tuning_is_known_before_the_pretraining",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "            failed.set()\n",
        "            pass\n",
        "tests/test_cross_validate.py::test_a_fold_that_failed_stops_the_others_and_its_settings_can_be_corrected",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "    _refuse_running(output, folds)\n",
        "",
        "tests/test_cross_validate.py::test_a_fold_that_still_runs_is_not_started_twice",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        '        if "mode" in changed:',
        "        if False:",
        "tests/test_baselines.py::test_folds_of_other_settings_are_not_mixed",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        "if told and begun:",
        "if told or begun:",
        "tests/test_cross_validate.py::test_a_fold_that_failed_stops_the_others_and_its_settings_can_be_corrected",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        'np.bincount(label[part["train"]].astype(int))',
        'np.bincount(label[part["test"]].astype(int))',
        "tests/test_baselines.py::test_the_commonest_class_is_that_of_the_training_part",
    ),
    Mutation(
        "recipes/training/fold_settings.py",
        '{"mode": MODES[0]} | yaml',
        "yaml",
        "tests/test_baselines.py::test_folds_of_other_settings_are_not_mixed",
    ),
    Mutation(
        "recipes/training/cross_validation.py",
        "args.baseline or runs[-1]",
        "args.baseline or runs[0]",
        "tests/test_baselines.py::test_two_runs_are_compared_as_before",
    ),
]
