"""States of files that are no mistakes, and that the program has to live with."""

import json
import os
import shutil
import zipfile

import pytest
import torch
from conftest import RESULT, rows_of
from messages import assert_line, assert_user_error, raises_user_error

from engine.watch_record import Record, state_of
from evaluation.thresholds import Thresholds
from inference import checkpoint, fingerprint
from reporting import summary
from reporting.predictions import COLUMNS, ROWS, Predictions
from runtime.provenance import file_state, signed

LATE = 10**19  # nanoseconds: a time in 2286, more than 63 bits


def late(path):
    os.utime(path, ns=(LATE, LATE))
    return path


def test_times_and_file_numbers_of_64_bits_are_kept(ready, call, tmp_path):
    image = late(ready / "mvtec/tile/test/good/000.png")
    state = state_of(str(image))
    record = Record(tmp_path / "record.sqlite", ready / "mvtec")
    record.add("tile/test/good/000.png", state, None)
    assert record.is_done("tile/test/good/000.png", state) and not record.is_done("tile", state._replace(file=2))
    record.close()
    assert signed(2**64 - 1) == -1 and [signed(n) for n in (0, 5, 2**63 - 1, -(2**63))] == [0, 5, 2**63 - 1, -(2**63)]
    assert max(map(abs, file_state(image))) < 2**63
    late(ready / "checkpoints/tile/tiny/epoch_0001.pt")
    chosen = ("--categories", "tile", "--registrations", "False", "--thresholds", "max")
    assert call("evaluate_checkpoints", *chosen)[0] == 0
    status, out, _ = call("evaluate_checkpoints", *chosen)
    assert status == 0
    assert_line(out, 2, "2 already complete, 0 to evaluate")


@pytest.mark.parametrize("settings", [None, [], "x"])
def test_results_without_their_settings_are_computed_anew(ready, call, settings):
    path = ready / RESULT / "made_with.json"
    content = json.loads(path.read_text()) | {"settings": settings}
    path.write_text(json.dumps(content))
    chosen = ("--categories", "tile", "--registrations", "False", "--thresholds", "max", "--checkpoints", "2")
    assert call("evaluate_checkpoints", *chosen)[0] == 0
    assert isinstance(json.loads(path.read_text())["settings"], dict)


@pytest.mark.parametrize("value", [float("nan"), True, 1.5, "0.5"])
def test_results_with_an_impossible_metric_are_computed_anew(ready, value):
    from reporting.result import read_record

    record = read_record(ready / RESULT)
    known = summary.read_kinds(ready / RESULT, record)
    path = ready / RESULT / "p_quantile/metrics.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"pro": value}))
    assert set(known) - set(summary.read_kinds(ready / RESULT, record)) == {"p_quantile"}


def test_a_table_of_times_in_another_encoding_is_continued(two, call):
    times = two / "checkpoints/training_times.txt"
    times.write_bytes("Prüfstand\n".encode("cp1252"))
    assert call("train_all", "--categories", "tile", "--force")[0] == 0
    head, line = times.read_bytes().splitlines()
    assert head == "Prüfstand".encode("cp1252") and line.startswith(b"tile ")


def test_a_checkpoint_that_does_not_say_what_it_is_from_fails_one_category(two, call):
    path = two / "checkpoints/tile/tiny/epoch_0002.pt"
    content = checkpoint.read(path)
    del content["provenance"], content["checksum"]
    torch.save(content, path)
    status, out, error = call("train_all")
    assert status == 1 and "Traceback" not in error
    assert_line(out, "failed: tile", path, "--force")


def test_other_files_that_are_called_like_checkpoints_are_none(two):
    run = two / "checkpoints/tile/tiny"
    (run / "epoch_0003.pt").mkdir()
    for name in ("epoch_1.pt", "epoch_00002.pt", f"epoch_{'9' * 100}.pt"):
        shutil.copy(run / "epoch_0001.pt", run / name)
    assert checkpoint.saved_epochs(run) == [1, 2]


def test_a_compressed_checkpoint_is_refused(two):
    path = two / "checkpoints/tile/tiny/last.pt"
    with zipfile.ZipFile(path) as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    with raises_user_error("last.pt"):
        checkpoint.read(path)


def test_a_single_value_with_a_stride_has_the_checksum_of_the_value():
    plain, strided = torch.ones(1), torch.ones(10).as_strided((1,), (9,))
    assert strided.stride() == (9,)
    assert fingerprint.checksum({"model": strided}) == fingerprint.checksum({"model": plain})
    assert fingerprint.fingerprint({"weight": strided}) == fingerprint.fingerprint({"weight": plain})


def test_moments_of_another_form_do_not_fit(two, cli):
    path = two / "checkpoints/tile/tiny/last.pt"
    content = checkpoint.read(path)
    content["optimizer"]["state"][0] = torch.zeros(2, 2)
    del content["checksum"]
    torch.save(content, path)
    assert_user_error(cli("--train", "--set", "train.epochs=3"), path, "train.resume=never")


ROW = ["a.png", "0.5", *[""] * 8]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        (",".join(ROW), 1),  # only its end is missing
        (",".join(ROW) + "\r", 1),
        (",".join(ROW)[:-1], 0),
        ("a.png,0.5,,,,,,,,half of an err", 0),
        ("", 0),
    ],
)
def test_a_last_row_that_lacks_its_end_is_kept_where_it_is_whole(tmp_path, text, count):
    Predictions(tmp_path, Thresholds("max", 0.5, 0.5), {}, "none", "refuse")
    path = tmp_path / ROWS
    path.write_text(f"{','.join(COLUMNS)}\r\n{text}", newline="")
    again = Predictions(tmp_path, Thresholds("max", 0.5, 0.5), {}, "none", "keep")
    again.write([["b.png", *ROW[1:]]])
    assert [row["path"] for row in rows_of(path)] == ["a.png"] * count + ["b.png"]


def test_a_row_whose_area_is_no_number_is_predicted_again(tmp_path):
    written = Predictions(tmp_path, Thresholds("max", 0.5, 0.5), {}, "none", "refuse")
    written.write([ROW, ["b.png", "0.5", "", "", "", "x", *[""] * 4]])
    written.write_report("title", str, {})
    assert written.done() == {"a.png"}


def test_a_record_that_was_not_begun_whole_is_settled(ready, tmp_path):
    """As after a kill while a removed record is begun anew: a second row for the rest would follow."""
    out = tmp_path / "watched"
    folder = ready / "mvtec/tile/test/good"
    predictions = Predictions(out, Thresholds("max", 0.5, 0.5), {}, "none", "refuse")
    names = sorted(path.name for path in folder.iterdir())
    predictions.write([[str(folder / name), *ROW[1:]] for name in names])
    for content in (None, b""):
        record = Record(out / "record.sqlite", folder)
        record.add(names[0], state_of(str(folder / names[0])), None)
        record.close()
        if content is not None:
            (out / "record.sqlite").write_bytes(content)
        record = Record(out / "record.sqlite", folder)
        record.catch_up(predictions)
        assert all(record.is_done(name, state_of(str(folder / name))) for name in names)
        record.close()
        (out / "record.sqlite").unlink()


def test_results_of_a_state_that_has_gone_on_are_those_of_its_epoch(two, cli, call):
    """Made with last.pt, which a longer training has replaced; the checkpoint of their epoch is there."""
    sets = ("--set", "data.run_name=longer", "--set", "train.save_every=1")
    assert cli("--train", "--threshold", "--detection", *sets, "--set", "train.epochs=1")[0] == 0
    assert cli("--train", *sets, "--set", "train.epochs=2")[0] == 0
    chosen = ("--categories", "tile", "--registrations", "False", "--thresholds", "p_quantile", "--checkpoints", "2")
    status, out, _ = call("evaluate_checkpoints", *chosen, *sets)
    assert status == 0 and "out of date" not in out
    assert {row["checkpoint"] for row in rows_of(two / "results/longer/summary.csv")} == {"1", "2"}
