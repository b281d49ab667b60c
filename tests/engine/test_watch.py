"""engine/watch.py, --watch: inference on each new image, once, when its file is complete."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from conftest import ROOT, rows_of, write
from messages import assert_line, assert_names

from data import folder_watch
from engine import watch


class Watching:
    """main.py --watch in a process of its own, and the lines that it prints."""

    def __init__(self, root):
        command = [sys.executable, "-u", ROOT / "main.py", "--config", root / "config.yaml"]
        command += ["--watch", root / "camera", "--output", root / "out"]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines = []
        threading.Thread(target=lambda: self.lines.extend(iter(self._read, "")), daemon=True).start()
        self.wait_for(f"{root / 'camera'}", f"{root / 'out'}")

    def _read(self):
        line = self.process.stdout.readline()
        return line and line.strip()

    def wait_for(self, *parts, count=1):
        """Until so many lines have all these parts; the last of them."""
        end = time.monotonic() + 60
        while len(found := [line for line in list(self.lines) if all(part in line for part in parts)]) < count:
            assert time.monotonic() < end and self.process.poll() is None, (parts, self.lines, self.process.poll())
            time.sleep(0.01)
        return found[-1]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        status = self.process.wait(30)
        time.sleep(0.2)  # the thread reads the last lines
        return status


@pytest.fixture
def camera(two, cli):
    """A workplace with thresholds and a folder that images are written to."""
    assert cli("--threshold")[0] == 0
    shutil.copytree(two / "mvtec/tile/test/good", two / "camera")
    return two


@pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
def test_each_image_is_predicted_once_when_it_is_complete(camera, cli):
    folder, spots = camera / "camera", sorted((camera / "mvtec/tile/test/spot").iterdir())
    watching = Watching(camera)
    watching.wait_for("camera/00", count=3)  # those that were there before
    data = spots[0].read_bytes()
    with (folder / "slow.png").open("wb") as stream:  # longer than an image must stay unchanged
        stream.write(data[: len(data) // 2])
        stream.flush()
        time.sleep(3 * watch.SETTLE_SECONDS)
        stream.write(data[len(data) // 2 :])
    shutil.copy(spots[1], camera / "moved.tmp")
    os.replace(camera / "moved.tmp", folder / "moved.png")
    (folder / "line 2").mkdir()
    shutil.copy(spots[2], folder / "line 2/ä.png")
    (folder / "note.txt").write_text("no image")
    (folder / ".half").mkdir()
    shutil.copy(spots[2], folder / ".half/hidden.png")
    shutil.copy(spots[2], os.path.join(os.fsencode(folder), b"l\xe4nge.png"))
    for name in ("slow.png", "moved.png", "line 2/ä.png"):
        line = watching.wait_for(f"camera/{name}")
        assert line.split()[0] in ("anomalous", "nominal") and line.endswith(" ms")
    assert_names(watching.wait_for("failed"), "UTF-8", "l\\xe4nge.png")
    assert watching.end(signal.SIGTERM) == 0 and watching.lines[-1] == f"predictions: {camera / 'out'}"
    rows = rows_of(camera / "out/predictions.csv")
    assert [row["path"].rpartition("/")[2] for row in rows if row["error"]] == ["l\\xe4nge.png"] and len(rows) == 7
    assert {path.relative_to(camera / "out/maps").as_posix() for path in (camera / "out/maps").rglob("*.png")} == {
        *(f"00{i}.png" for i in range(3)),
        "slow.png",
        "moved.png",
        "line 2/ä.png",
    }
    os.remove(os.path.join(os.fsencode(folder), b"l\xe4nge.png"))
    assert cli("--predict", str(folder), "--output", str(camera / "again"))[0] == 0
    expected = {row["path"]: float(row["score"]) for row in rows_of(camera / "again/predictions.csv")}
    assert {row["path"]: float(row["score"]) for row in rows if row["score"]} == pytest.approx(expected, abs=1e-6)

    again = Watching(camera)  # only a replaced image is predicted again
    write(folder / "000.png", np.full((40, 48, 3), 30, np.uint8))
    again.wait_for("camera/000.png")
    assert again.end(signal.SIGINT) == 0
    assert len(rows_of(camera / "out/predictions.csv")) == 8
    page = (camera / "out/report.html").read_text(encoding="utf-8")
    assert page.count('"name": ') == 7 and "line 2/ä.png" in page
    assert_line(page, re.compile(r"\b7\b.*\b1\b"), 7)  # images, of which failed


@pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
def test_a_removed_folder_is_waited_for_and_a_killed_watch_keeps_every_row(camera):
    watching = Watching(camera)
    watching.wait_for("camera/00", count=3)
    shutil.move(camera / "camera", camera / "unplugged")
    watching.wait_for(f"{camera / 'camera'}: ")
    time.sleep(0.3)
    shutil.copy(camera / "mvtec/tile/test/spot/000.png", camera / "unplugged/new.png")
    (camera / "unplugged/broken.png").write_text("no image")
    shutil.move(camera / "unplugged", camera / "camera")
    watching.wait_for("camera/new.png")
    assert sum(line.startswith(f"{camera / 'camera'}: ") for line in watching.lines) == 2  # removed, and back
    assert_names(watching.wait_for("failed"), "broken.png")
    watching.process.kill()
    watching.process.wait(30)
    with (camera / "out/predictions.csv").open("a") as stream:
        stream.write("half/a/row.png,0.1")
    with contextlib.closing(watch.Done(camera / "out" / watch.DONE_FILE)) as done:
        done._base.execute("DELETE FROM done WHERE path LIKE '%new.png'")  # killed between the row and the note
        done._base.commit()
    again = Watching(camera)
    shutil.copy(camera / "mvtec/tile/test/spot/001.png", camera / "camera/last.png")
    again.wait_for("camera/last.png")
    again.end()
    rows = rows_of(camera / "out/predictions.csv")
    names = [row["path"].rpartition("/")[2] for row in rows]
    assert names == [*sorted(names[:3]), *names[3:5], "last.png"] and set(names[3:5]) == {"new.png", "broken.png"}


def test_predicted_versions_of_files_are_kept_on_the_disk(tmp_path):
    with contextlib.closing(watch.Done(tmp_path / "done.sqlite")) as done:
        done.add("a.png", watch.State(1, 2))
        done.add("a.png", watch.State(1, 3))
    with contextlib.closing(watch.Done(tmp_path / "done.sqlite")) as done:
        assert ("a.png", watch.State(1, 3)) in done and ("a.png", watch.State(1, 2)) not in done
        assert ("b.png", watch.State(1, 3)) not in done
    assert (
        folder_watch.is_image("x/a.JPG")
        and not folder_watch.is_image("x/.a.png")
        and not folder_watch.is_image("x/a.txt")
    )


def test_a_folder_of_many_images_is_listed_in_parts(tmp_path):
    camera = tmp_path / "camera"
    names = {f"{folder}/{i:04}.png" for folder in ("one", "two", "two/three") for i in range(1000)}
    for name in names:
        (camera / name).parent.mkdir(parents=True, exist_ok=True)
        (camera / name).touch()
    (camera / "two/round").symlink_to(camera, target_is_directory=True)
    source, found, looks = folder_watch.WatchedFolder(camera), [], []
    while not source._is_listed:
        looks.append([os.path.relpath(path, camera) for path in source.new()])
        found += looks[-1]
    assert sorted(found) == sorted(names) and max(map(len, looks)) <= folder_watch.LISTING_CHUNK
    assert not list(source.new(lists=False))
    source.stop()
