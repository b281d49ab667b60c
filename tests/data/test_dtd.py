"""data/dtd.py: the download of the textures."""

import sys
import types

from messages import raises_user_error

from data_loader import fetch_dtd


def test_dtd_is_downloaded_once(tmp_path, monkeypatch):
    def download(root, download):
        (tmp_path / "dtd/dtd/images/banded").mkdir(parents=True)
        (tmp_path / "dtd/dtd/images/banded/1.jpg").write_bytes(b"x")

    # In place of torchvision, which is not a requirement and would download 600 MB.
    fake = types.ModuleType("torchvision.datasets")
    fake.DTD = download
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    assert fetch_dtd(tmp_path) == tmp_path / "dtd/images"
    assert (tmp_path / "dtd/images/banded/1.jpg").is_file()
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)  # its import fails
    assert fetch_dtd(tmp_path).is_dir()  # already there
    with raises_user_error("torchvision", tmp_path / "elsewhere"):
        fetch_dtd(tmp_path / "elsewhere")
