#!/usr/bin/env bash
# SciPy's orthogonal_procrustes of a set with itself is not the identity if there are fewer rows than dimensions.
# Expected: the best rotation of X onto X is the identity, and leaves new vectors where they are.
# Seen: X stays exactly where it is, but a new vector is turned, with 20 rows of 64 dimensions to a cosine of about 0.3.
# Directions that no row has are paired as the singular value decomposition happens to order them. From 500 pairs in 768
# dimensions, a third of the space is turned at random, and training rows do not show it.
# Affects: --arch procrustes with few pairs. step2_align.solve adds a small multiple of the identity to X^T Y, so that
# such directions stay near where they are.
# Versions: scipy 1.17.1, numpy 2.4.0. Date: 2026-11-29.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install -q scipy==1.17.1 numpy==2.4.0
"$work/venv/bin/python" - <<'END'
import numpy as np
import scipy
from scipy.linalg import orthogonal_procrustes

print("scipy", scipy.__version__, "numpy", np.__version__)
rng = np.random.default_rng(0)
new = rng.normal(size=(500, 64))
for rows, turned in {20: True, 40: True, 200: False}.items():
    X = rng.normal(size=(rows, 64))
    W, _ = orthogonal_procrustes(X, X)
    cosine = ((new @ W) * new).sum() / (new**2).sum()
    print(f"{rows} rows: moved by {abs(X @ W - X).max():.0e}, cosine of new vectors {cosine:.2f}")
    assert np.allclose(X @ W, X), "X is moved"
    assert (cosine < 0.7) == turned, "behaviour changed"

# With a small multiple of the identity the undetermined directions stay
X = rng.normal(size=(20, 64))
product = X.T @ X
u, _, vt = np.linalg.svd(product + 1e-6 * np.linalg.norm(product) * np.eye(64))
assert np.allclose(new @ u @ vt, new, atol=1e-6)
END
