"""Build the embedded `digits` from the copy that scikit-learn carries.

pip install scikit-learn
python -m metagan_fast.tasks.build_digits
"""

from __future__ import annotations

import numpy as np

from . import embedded


def main() -> None:
    """Write the images (0 to 16, scaled to 0 to 255) and their labels."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = np.rint(digits.images * 255 / 16).astype(np.uint8)
    np.savez_compressed(embedded.FOLDER / "digits.npz", images=images, labels=digits.target.astype(np.uint8))


if __name__ == "__main__":
    main()
