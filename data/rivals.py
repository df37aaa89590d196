"""Rivals of LangAlign that need no pairs, and noise for translations, for data/experiments.py.

Embeddings: x (N, D) are the English rows. `xite` takes their labels y (N,) and target text (M, D) without
labels. `unpaired` takes no labels: its y (M, D) is that target text.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from common import Aligner

NOISE = "drop", "replace", "swap"


def add_noise(texts, kind, share, seed=0):
    """Return texts (tuples) with this share of the words of each dropped or replaced by another word of `texts`,
    or with this share of whole texts swapped. Words are what spaces separate, and one word is always kept."""
    rng = np.random.default_rng(seed)
    if kind == "swap":
        rows = rng.permutation(len(texts))[: round(share * len(texts))].tolist()
        moved = dict(zip(rows, rows[1:] + rows[:1]))  # each takes the next one's text
        return [texts[moved.get(i, i)] for i in range(len(texts))]
    words = sorted({word for text in texts for part in text for word in part.split()})
    number = {word: i for i, word in enumerate(words)}

    def change(part):
        old = part.split()
        count = round(share * len(old))
        hit = set(rng.permutation(len(old))[: min(count, len(old) - 1)].tolist())
        if kind == "drop":
            return " ".join(word for i, word in enumerate(old) if i not in hit)
        steps = rng.integers(1, max(2, len(words)), len(old))  # to another word, never to itself
        new = [words[(number[word] + step) % len(words)] for word, step in zip(old, steps)]
        return " ".join(new[i] if i in hit else word for i, word in enumerate(old))

    return [tuple(map(change, text)) for text in texts]


def xite(x, y, target, share=0.7):
    """Return the rows and labels to train a head on by XITE (arXiv 2604.23589), as its abstract describes it. Each
    unlabelled target embedding (M, D) takes the label of the English row of x (N, D), y (N,) with the highest
    cosine, and the two are interpolated. Our choices: `share` is the target's weight, English rows are kept, no LDA."""
    nearest = (F.normalize(target, dim=1) @ F.normalize(x, dim=1).T).argmax(1)  # (M,)
    return torch.cat([x, share * target + (1 - share) * x[nearest]]), torch.cat([y, y[nearest]])


def clusters(x, k, rng, rounds=20):
    """Return k centres (k, D) of unit vectors x (N, D), by k-means with the cosine."""
    centres = x[rng.integers(len(x))][None]
    while len(centres) < k:  # start with rows far from each other
        farthest = (x @ centres.T).amax(1).argmin()
        centres = torch.cat([centres, x[farthest][None]])
    for _ in range(rounds):
        sums = torch.zeros_like(centres).index_add(0, (x @ centres.T).argmax(1), x)
        centres = F.normalize(sums, dim=1)
    return centres


def match(a, b, rng, tries=3_000, starts=10):
    """Return the permutation of b (k, k) whose rows and columns fit matrix a (k, k) best, found by swaps that help."""
    found = []
    for _ in range(starts):
        order = rng.permutation(len(a))
        best = (a * b[order][:, order]).sum()
        for swap in rng.integers(len(a), size=(tries, 2)):
            other = order.copy()
            other[swap] = order[swap[::-1]]
            score = (a * b[other][:, other]).sum()
            if score > best:
                order, best = other, score
        found.append((best, order.tolist()))
    return max(found)[1]


def unpaired(x, y, start="anchors", k=20, runs=10, neighbours=10, rounds=30, seed=0):
    """Return the orthogonal Aligner from English x (N, D) to target y (M, D), found without pairs, as mini-vec2vec
    (arXiv 2510.02348) finds it. Rows are compared by their cosines to the centres of `runs` clusterings, which
    quadratic assignment matches. A row's pair is the mean of its nearest target rows. Procrustes fits W to the pairs,
    and nearest rows after W give better pairs. Left out: smoothing, refinement by clusters. start "identity" (our
    choice) compares the rows themselves, since one LM embeds both languages."""
    rng = np.random.default_rng(seed)
    X, Y = (F.normalize(rows - rows.mean(0), dim=1) for rows in (x, y))
    similarity = X @ Y.T if start == "identity" else torch.zeros(len(X), len(Y))
    for _ in range(runs if start == "anchors" else 0):
        a, b = clusters(X, k, rng), clusters(Y, k, rng)
        b = b[match((a @ a.T).numpy(), (b @ b.T).numpy(), rng)]
        similarity += F.normalize(X @ a.T, dim=1) @ F.normalize(Y @ b.T, dim=1).T
    for _ in range(rounds):
        pairs = Y[similarity.topk(min(neighbours, len(Y)), 1).indices].mean(1)  # (N, D)
        # directions without data stay
        u, _, vt = torch.linalg.svd(X.T @ pairs + 1e-3 * torch.eye(x.shape[1]))
        similarity = X @ (u @ vt) @ Y.T
    aligner = Aligner("procrustes", x.shape[1])
    aligner.mean_x, aligner.mean_y = x.mean(0), y.mean(0)
    aligner.f.weight.data = (u @ vt).T.contiguous()
    return aligner
