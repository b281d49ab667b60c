"""data/folder_watch.py: a watched folder of many images; engine/test_watch.py has what happens to them."""

import os

from data import folder_watch


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
