"""Edits of recipes/corpora."""

from mutations.record import Mutation

MUTATIONS = [
    Mutation(
        "recipes/corpora/covid_ct_md.py",
        "places.__getitem__, reverse=True)",
        "places.__getitem__)",
        "tests/test_downloads.py::test_slice_labels_go_from_the_head_and_are_the_annotation",
    ),
    Mutation(
        "recipes/corpora/covid_ct_md.py",
        ", annotation=annotation, window=LUNG_WINDOW)",
        ", annotation=annotation)",
        "tests/test_downloads.py::test_grey_levels_are_those_of_the_window_of_lungs_unless_another_is_asked_for",
    ),
    Mutation(
        "recipes/corpora/facts.py",
        'licence_id="cc-by-nc-4.0" if',
        'licence_id="cc-by-4.0" if',
        "tests/test_downloads.py::test_licences_of_medmnist",
    ),
    Mutation(
        "recipes/corpora/facts.py",
        "    for root in (folder, folder.parent):  #",
        "    for root in ():  #",
        "tests/test_corpora.py::test_a_folder_of_gbcu_is_as_little_given_out_as_gbcu",
    ),
    Mutation(
        "recipes/corpora/facts.py",
        "            if facts.no_copies and (",
        "            if name in CORPORA and (",
        "tests/test_corpora.py::test_a_layout_alone_makes_nothing_open",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "for table in tables.values() for value in table.unique(column)",
        "for table in list(tables.values())[:1] for value in table.unique(column)",
        "tests/test_corpora.py::test_labels_of_every_type_become_classes_over_all_splits",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "[str(value) for value in sorted(values)]",
        "[str(value) for value in sorted(values, key=str)]",
        "tests/test_corpora.py::test_labels_of_every_type_become_classes_over_all_splits",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "        if None in names and not (some_labels and classes.names):\n",
        "        if False:\n",
        "tests/test_corpora.py::test_labels_that_are_none",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "    return str(value).strip() or None\n",
        "    return str(value)\n",
        "tests/test_corpora.py::test_patients_of_parquet_are_text_without_blanks",
    ),
    Mutation(
        "recipes/corpora/load.py",
        "        if any(map(is_ignored, file.relative_to(folder).parts)):\n            continue\n",
        "",
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/corpora/pneumonia.py",
        ', "validation": "validation"}',
        "}",
        "tests/test_corpora.py::test_the_validation_part_of_chest_x_rays_goes_by_both_names",
    ),
    Mutation(
        "recipes/corpora/record.py",
        'else "utf-8-sig"\n',
        'else "utf-8"\n',
        "tests/test_corpora.py::test_gbcu_lists_as_windows_saves_them",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "    if zero:  #",
        "    if False:  #",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "if path.is_dir() and not is_ignored(path.name)}",
        "if path.is_dir()}",
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/corpora/record.py",
        'return name.startswith(".") or name.lower() in IGNORED',
        'return name.startswith(".") or name in IGNORED',
        "tests/test_corpora.py::test_what_systems_leave_behind_changes_nothing",
    ),
    Mutation(
        "recipes/corpora/record.py",
        " and not _leads_up(Path(folder, name))]",
        "]",
        "tests/test_corpora.py::test_links_back_to_a_folder_give_no_image_twice",
    ),
    Mutation(
        "recipes/corpora/record.py",
        "else images if is_utf8(path) else unnamed)",
        "else images)",
        "tests/test_corpora.py::test_names_that_are_not_utf8_and_broken_links",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "Path(os.path.abspath(existing_folder(data_dir)))",
        "existing_folder(data_dir)",
        "tests/test_corpora.py::test_a_relative_folder_takes_absolute_paths_and_nothing_outside",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "^pat(id|no|nr|num|number|code|key)?$|^pt(id|no|nr)$",
        "^patid$",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "|person|^case|",
        "|person|case|",
        "tests/test_corpora.py::test_columns_that_only_look_a_little_like_a_patient_are_none",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "values = [value.strip() for value in row]",
        "values = list(row)",
        "tests/test_corpora.py::test_blanks_in_a_table_put_no_patient_on_both_sides",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "for letter in name.lower() if letter.isalnum()",
        "for letter in name if letter.isalnum()",
        "tests/test_corpora.py::test_a_table_is_read_whatever_its_columns_are_called",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if suspects:\n",
        "        if False:\n",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        elif len(found) > 1:\n",
        "        elif len(found) > 9:\n",
        "tests/test_corpora.py::test_columns_that_are_not_clear_are_an_error",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if asked == NONE:\n            chosen[thing] = None\n",
        "        if False:\n            chosen[thing] = None\n",
        "tests/test_corpora.py::test_a_label_is_declined_too",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "                yield reader.line_num, values",
        "                yield 1, values",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/table.py",
        "        if path in lines:\n",
        "        if False:\n",
        "tests/test_corpora.py::test_a_table_that_is_wrong_is_told_by_file_and_line",
    ),
    Mutation(
        "recipes/corpora/record.py",
        'if dicoms and (bad_images != "skip" or not images):',
        'if dicoms and bad_images != "skip":',
        "tests/test_dicom.py::test_pretraining_on_dicom_files_names_the_command_to_run_first",
    ),
]
