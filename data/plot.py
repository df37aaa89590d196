"""Draw what eval.py measured for one language as a standalone SVG: `python eval.py --lang ko --plot ko.svg`.

Left:  the first two principal components of held-out pairs: e(d), A(e(d)) of the newest langalign head, and
       e(T(d)); ten pairs are joined.
Right: difference to the english head against n, with its 95% interval, for every method; those without n are
       lines across.
Readable on white and on black. No plotting package; the README shows one made from real text.
"""
import torch

from common import UserError, load_aligner, load_translated, write_whole

GREY = "#808080"       # legible on white and on black, as the colours are
COLORS = ("#3b82c4", "#d9822b", "#2a9d62", "#a05eb5", "#c94f4f", "#8a7a20", "#2f9c9c", "#c2569b",
          "#7a6ff0", "#5a9e1f", "#b86a4b", "#7f8fa9")
HEAD = """<svg xmlns="http://www.w3.org/2000/svg" width="900" height="520" style="font:13px sans-serif">
<text x="430" y="16" fill="#808080">accuracy against n, 95% interval of the difference to english</text>"""

def element(kind, words="", **attributes):
    given = " ".join(f'{key.replace("_", "-")}="{value}"' for key, value in attributes.items())
    return f"<{kind} {given}>{words}</{kind}>"

def draw_pairs(lang, heads, cache, info):
    """The left panel: elements of up to 200 held-out pairs."""
    head = next(head for _, head in heads if head["method"] == "langalign")        # the newest
    count, svg = min(head["alignment"]["held_out"], 200), []
    x, y = (cache(t[-count:]) for t in load_translated(info["data"], info["task"], lang, head["n"])[:2])
    clouds = torch.stack([x, load_aligner(head, x.shape[1]).map(x), y])                        # (3, N, D)
    flat = (clouds - clouds.mean((0, 1))).flatten(0, 1)
    flat = flat @ torch.linalg.svd(flat, full_matrices=False).Vh[:2].T             # (3 N, 2)
    flat = (flat - flat.amin(0)) / (flat.amax(0) - flat.amin(0)) * 330 + 30        # pixels
    spots = flat.round().view(3, -1, 2).tolist()
    for i, words in enumerate(("English e(d)", f"A(e(d)), {head['arch']}", f"{lang} e(T(d))")):
        svg.append(element("text", words, x=30 + 145 * i, y=16, fill=COLORS[i]))
        for j, (u, v) in enumerate(spots[i]):
            svg.append(element("circle", cx=u, cy=v, r=4 if j < 10 else 2, fill=COLORS[i]))
            if i and j < 10:                                 # ten pairs joined: d, A(d), T(d)
                start = spots[i - 1][j]
                svg.append(element("path", d=f"M{start[0]} {start[1]} L{u} {v}", stroke=GREY))
    return svg

def draw_gains(records):
    """The right panel: elements of the table's rows, records of eval.py."""
    shown, level = ([r for r in records if bool(r["n"]) == b and r["method"] != "majority"] for b in (1, 0))
    kinds, sizes = list(dict.fromkeys(r["label"] for r in shown)), sorted({r["n"] for r in shown})
    ends = [r["delta" + end] for r in shown + level for end in ("_low", "", "_high")]
    low, high = min(ends), max(ends)

    def height(r, end=""):
        return round(360 - 330 * (r["delta" + end] - low) / ((high - low) or 1))

    svg = [element("text", f"{100 * value:+.1f}", x=424, y=y, fill=GREY, text_anchor="end")
           for value, y in ((low, 364), (high, 34))]
    for k, r in enumerate(sorted(level, key=height)):
        svg += [element("path", d=f"M430 {height(r)} H770", stroke=GREY, stroke_dasharray=4),
                element("text", f"{r['method']} {r['accuracy']:.1%}", x=774, y=height(r) - 4 + 14 * k,
                        fill=GREY)]
    slot = 340 / len(sizes)
    svg += [element("text", f"n={n:,}", x=430 + slot * (i + 0.5), y=380, fill=GREY, text_anchor="middle")
            for i, n in enumerate(sizes)]
    svg += [element("text", kind, x=30 + 290 * (k % 3), y=404 + 18 * (k // 3), fill=COLORS[k % len(COLORS)])
            for k, kind in enumerate(kinds)]
    for r in shown:
        k = kinds.index(r["label"])
        x = round(430 + slot * (sizes.index(r["n"]) + (k + 1) / (len(kinds) + 1)))
        color = COLORS[k % len(COLORS)]
        ends = f"M{x} {height(r, '_low')} V{height(r, '_high')}"
        svg += [element("path", d=ends, stroke=color, stroke_width=2),
                element("circle", cx=x, cy=height(r), r=4, fill=color)]
    return svg

def draw(path, lang, records, heads, cache, info):
    """Write the picture of `lang`: records are the table's rows, heads [(path, artifact)], newest first."""
    if not lang or "langalign" not in {head["method"] for _, head in heads}:
        raise UserError(f"--plot {path} draws one language that has a langalign head: give --lang, or "
                        f"python step3_head.py --lang {lang or 'ko'}")
    svg = "\n".join([HEAD, *draw_pairs(lang, heads, cache, info), *draw_gains(records), "</svg>\n"])
    write_whole(path, svg.encode())
