import numpy as np

from warmgap.lab.digits import BRIGHTEST, CLASSES, PIXELS, load_images


def test_the_images_are_split_once_for_all() -> None:
    images = load_images()
    assert images.train.shape == (1437, PIXELS + 1)
    assert images.validation.shape == (360, PIXELS + 1)
    rows = np.concatenate([images.train, images.validation])
    assert rows[:, :-1].max() == BRIGHTEST
    assert rows[:, :-1].min() == 0
    for part in (images.train, images.validation):
        assert set(part[:, -1]) == set(range(CLASSES))
    assert images.fingerprint == "ba501c02dedf27def709be88944b6146"
