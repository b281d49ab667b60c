"""engine/watch.py, --watch, as a process: signals, a folder that vanishes, a kill; test_watch.py has the rest."""

import os
import re
import shutil
import signal
import time

import numpy as np
import pytest
from conftest import ROOT, rows_of, start_fork, wait_until, write
from messages import assert_line, assert_names


class Watching:
    """main.py --watch in a process of its own."""

    def __init__(self, root):
        arguments = ["--config", root / "config.yaml", "--watch", root / "camera", "--output", root / "out"]
        arguments += ["--set", "watch.quiet_seconds=0.2"]
        self.process = start_fork(ROOT / "main.py", arguments, root)
        self.wait_for(f"{root / 'camera'}", f"{root / 'out'}")

    @property
    def lines(self):
        return [line.strip() for line in self.process.out.read_text(encoding="utf-8").splitlines()]

    def wait_for(self, *parts, count=1):
        """Until so many lines have all these parts; the last of them."""
        end = time.monotonic() + 60
        while len(found := [line for line in self.lines if all(part in line for part in parts)]) < count:
            assert time.monotonic() < end and self.process.poll() is None, (parts, self.lines, self.process.poll())
            time.sleep(0.01)
        return found[-1]

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        return self.process.wait(30)


@pytest.mark.skipif(os.name == "nt", reason="signals are other ones there")
def test_each_image_is_predicted_once_when_it_is_complete(camera, cli):
    folder, spots = camera / "camera", sorted((camera / "mvtec/tile/test/spot").iterdir())
    watching = Watching(camera)
    watching.wait_for("camera/00", count=3)  # those that were there before
    data = spots[0].read_bytes()
    with (folder / "slow.png").open("wb") as stream:  # a writer that pauses
        stream.write(data[: len(data) // 2])
        stream.flush()
        time.sleep(1)
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
    wait_until(lambda: "broken.png" in (camera / "out/predictions.csv").read_text(), watching.process)
    watching.process.kill()
    watching.process.wait(30)
    with (camera / "out/predictions.csv").open("a") as stream:
        stream.write("half/a/row.png,0.1")
    (camera / "out/record.sqlite").unlink()  # then predictions.csv tells what is done
    again = Watching(camera)
    shutil.copy(camera / "mvtec/tile/test/spot/001.png", camera / "camera/last.png")
    again.wait_for("camera/last.png")
    again.end()
    rows = rows_of(camera / "out/predictions.csv")
    names = [row["path"].rpartition("/")[2] for row in rows]
    assert names == [*sorted(names[:3]), *names[3:5], "last.png"] and set(names[3:5]) == {"new.png", "broken.png"}
