"""training/mixing.py: added images are half of every batch."""

import numpy as np
from conftest import write

from data_loader import train_loader
from synthesis import AnomalySynthesizer
from training.mixing import MixedDataset, mixed


def test_every_batch_is_half_of_added_images(tmp_path):
    rng = np.random.default_rng(0)
    textures = [write(tmp_path / "a.png", rng.integers(0, 256, (40, 40, 3), dtype=np.uint8))]
    old, new = ([np.full((32, 32, 3), value + i, np.uint8) for i in range(n)] for value, n in ((10, 11), (200, 3)))
    synthesizer = AnomalySynthesizer(textures, (32, 32))
    dataset = MixedDataset(old, new, synthesizer, 0, 1)
    loader = train_loader(dataset, 4, 0, share=mixed(list))
    drawn: dict[int, set] = {0: set(), 1: set()}
    samples = []
    for epoch in (1, 2):
        loader.batch_sampler.sampler.epoch = epoch
        sizes = []
        for batch in loader:
            levels = batch["image"].flatten(1).amax(1).tolist()  # a rotated image has black corners
            assert [level >= 200 for level in levels] == [place % 2 == 1 for place in range(len(levels))]
            for level in levels:
                drawn[int(level >= 200)].add(level)
            sizes.append(len(levels))
            samples += [image.numpy().tobytes() for image in batch["augmented_image"]]
        assert sizes == [4, 4, 3]
    assert drawn[1] == {200, 201, 202} and len(drawn[0]) > 6
    assert len(set(samples)) > 15  # not the same synthetic anomalies again and again
