"""data/prepare.py on small files in the sources' own formats, of our own writing, from a local server. No network."""
import csv
import http.server
import io
import json
import re
import threading
import zipfile

import prepare
import pytest
from conftest import ROOT, script
from test_errors import listing, refuse

from common import load_task, load_translated

KINDS = ("entailment", "neutral", "contradiction")
SAYS = {"en": ('{} birds sit on the "old" roof', "birds number {} {} fly"),
        "ko": ("새 {}마리가 지붕에 앉아 있다", "새 {}번은 {} 난다"), "ja": ("鳥{}羽が屋根にいます", "{}番の鳥は{}飛びます"),
        "zh": ("{}只鸟在屋顶上", "第{}只鸟{}飞"), "sw": ("ndege {} wako juu ya paa", "ndege wa {} {} huruka"),
        "ur": ("{} پرندے چھت پر ہیں", "پرندہ {} {} اڑتا ہے")}
ROWS = 40                                                    # of each file, before what is planted below


def pair(lang, number):
    return [text.format(number, "x" * (number % 3)) for text in SAYS[lang]]


def tsv(header, rows, end="\n"):
    return "".join("\t".join(row) + end for row in [header.split(), *rows] if row).encode()


def glue_mnli():
    header = ("index promptID pairID genre sentence1_binary_parse sentence2_binary_parse sentence1_parse "
              "sentence2_parse sentence1 sentence2 label1 gold_label")
    rows = [[str(i), "p", "q", "birds", *["( )"] * 4, *pair("en", i), *[KINDS[i % 3]] * 2] for i in range(ROWS)]
    return tsv(header, rows)


def xnli(first):
    """30 numbers from `first` on in four languages, the last without a gold label: 120 rows."""
    header = ("language gold_label sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse "
              "sentence1 sentence2 promptID pairID genre label1 label2 label3 label4 label5 sentence1_tokenized "
              "sentence2_tokenized match")
    rows = [[lang, KINDS[i % 3] if i < first + 29 else "-", *[""] * 4, *pair(lang, i), "1", "1", "birds",
             *[KINDS[i % 3]] * 5, *pair(lang, i), "True"]
            for lang in ("en", "zh", "sw", "ur") for i in range(first, first + 30)]
    return tsv(header, rows)


def translated(lang):
    """Row i is MNLI's row i, English tokenised as in the source. Row 5's English is an XNLI test row, row 6's
    translation one."""
    label, planted = {"contradiction": "contradictory"}, {5: 1005} if lang == "en" else {6: 1006}
    rows = [[*pair(lang, planted.get(i, i)), label.get(KINDS[i % 3], KINDS[i % 3])] for i in range(ROWS)]
    content = tsv("premise hypo label", rows)
    return content.replace(b'"old"', b'" old "') if lang == "en" else content


def kornli(numbers):
    return tsv("sentence1 sentence2 gold_label", [[*pair("ko", i), KINDS[i % 3]] for i in numbers])


def jnli(numbers):
    rows = [{"sentence_pair_id": str(i), "yjcaptions_id": "0-0-0", "sentence1": pair("ja", i)[0] + "\n\t続き",
             "sentence2": pair("ja", i)[1], "label": KINDS[i % 3]} for i in numbers]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def jsick():
    header = ("pair_ID data sentence_A_En sentence_B_En entailment_label_En relatedness_score_En "
              "corr_entailment_labelAB_En corr_entailment_labelBA_En sentence_A_Ja sentence_B_Ja entailment_label_Ja "
              "relatedness_score_Ja image_ID original_caption semtag_short semtag_long")
    return tsv(header, [[str(i), ("train", "trial", "test")[i % 3], *pair("en", i), "neutral", "4.5", "", "",
                         *pair("ja", i), "entailment", "4.0", "", "", "", ""] for i in range(ROWS)], "\r\n")


def jrte():
    return b"".join(f'pn{i}\t{(1, -1, 0)[i % 3]}\t部屋{i}は{"良悪並"[i % 3]}\t{{"1": 3}}\t'
                    f'{("train", "dev", "test")[i // 3 % 3]}\n'.encode() for i in range(ROWS + 14))


def nsmc(numbers):
    """Sorted by label; with an empty review and one that has a line separator in it."""
    rows = [[str(i), f"영화 {i}\u2028정말 {'좋다' if i % 2 else '싫다'}", str(i % 2)] for i in numbers]
    return tsv("id document label", sorted([*rows, ["9", " ", "1"]], key=lambda row: row[2]))


def reviews(thing):
    """CSV of positive rows, then negative ones: BOM, CRLF, texts with commas, quotes and line breaks."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(["label", "review"])
    table.writerows([label, f'{thing}{i},\n他说"{"坏好"[label]}"'] for label in (1, 0) for i in range(ROWS // 2))
    return b"\xef\xbb\xbf" + out.getvalue().encode()


def sst2(numbers):
    rows = [[f"the film number {i} is {'fine' if i % 2 else 'poor'} ", str(i % 2)] for i in numbers]
    return tsv("sentence label", rows)


def make_files():
    """{source: {file: bytes}}; Test or dev rows stand among the training rows of most."""
    mt = {prepare.MT.format(lang): translated(lang) for lang in ("en", "zh", "sw", "ur")}
    return {"SST-2": {"SST-2/train.tsv": sst2(range(ROWS + 1)), "SST-2/dev.tsv": sst2(range(ROWS, ROWS + 20))},
            "MNLI": {"MNLI/train.tsv": glue_mnli()},
            "XNLI": {"XNLI-1.0/xnli.dev.tsv": xnli(500), "XNLI-1.0/xnli.test.tsv": xnli(1000)}, "XNLI-MT": mt,
            "KorNLI": {"multinli.train.ko.tsv": kornli([*range(ROWS - 1), 1002]),
                       "xnli.dev.ko.tsv": kornli(range(500, 530)), "xnli.test.ko.tsv": kornli(range(1000, 1030))},
            "JNLI": {"train-v1.3.json": jnli([*range(200, 230), 400]),
                     "valid-v1.3.json": jnli([*range(300, 330), 401]), "test-v1.3.json": jnli(range(400, 430))},
            "JSICK": {"jsick.tsv": jsick()}, "JRTE": {"pn.tsv": jrte()},
            "NSMC": {"ratings_train.txt": nsmc(range(ROWS)), "ratings_test.txt": nsmc(range(ROWS - 2, ROWS + 20))},
            "waimai": {"waimai_10k.csv": reviews("外卖")}, "ChnSentiCorp": {"ChnSentiCorp_htl_all.csv": reviews("酒店")}}


COUNTS = {"SST-2": (41, 20), "MNLI": (40,), "XNLI": (120, 120), "XNLI-MT": (40,) * 4, "KorNLI": (40, 30, 30),
          "JNLI": (31, 31, 30), "JSICK": (40,), "JRTE": (54,), "NSMC": (41, 23), "waimai": (40,), "ChnSentiCorp": (40,)}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves server.files; server.ranges: honours Range; server.cut: sends that many bytes, then hangs up."""
    def do_GET(self):
        server = self.server
        body, asked = server.files.get(self.path), self.headers.get("Range")
        server.log.append((self.path, asked))
        if body is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and server.ranges else 0
        if start >= len(body):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        self.wfile.write(body[start:server.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.files, server.log, server.ranges, server.cut = {}, [], True, None
    server.base = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


class World:
    """The small files; `change` them, then `put` them on the server and into the table, with their counts."""
    def __init__(self, server, monkeypatch, tmp_path):
        self.server, self.monkeypatch, self.tmp = server, monkeypatch, tmp_path
        self.files, self.counts = make_files(), dict(COUNTS)
        self.put()

    def put(self):
        for name, files in self.files.items():
            source = prepare.SOURCES[name]
            last = source.url.rsplit("/", 1)[1]
            if last:
                archive = io.BytesIO()
                with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
                    for member, content in files.items():
                        file.writestr(member, content)
                self.server.files[f"/{last}"] = archive.getvalue()
            else:
                self.server.files |= {f"/{name}/{file}": content for file, content in files.items()}
            self.monkeypatch.setitem(prepare.SOURCES, name, source._replace(
                url=f"{self.server.base}/{last}" if last else f"{self.server.base}/{name}/",
                files=dict(zip(files, self.counts[name]))))

    def change(self, name, file, old, new, times=1):
        content = self.files[name][file]
        assert old in content
        self.files[name][file] = content.replace(old, new, times)
        self.put()

    def args(self, task, lang, *more):
        return [task, "--lang", lang, "--root", str(self.tmp / "real"), "--cache", str(self.tmp / "cache"), *more]

    def run(self, task, lang, *more):
        prepare.main(self.args(task, lang, *more))
        return self.tmp / "real"

    def refuse(self, task, lang, *more, match):
        message = refuse(prepare.main, *self.args(task, lang, *more), match=match)
        assert not (self.tmp / "real").exists()              # nothing half-written
        return message


@pytest.fixture
def world(server, monkeypatch, tmp_path):
    return World(server, monkeypatch, tmp_path)


ENGLISH = {"sentiment": {"en/train", "en/dev"}, "nli": {"en/train", "en/dev", "en/test"}}
TARGET = {("sentiment", "ko"): {"train": 34, "dev": 4, "test": 22},
          ("sentiment", "ja"): {"train": 12, "dev": 12, "test": 12},
          ("sentiment", "zh"): {"train": 65, "dev": 7, "test": 8},
          ("nli", "ko"): {"dev": 30, "test": 30, "translated": 39},
          ("nli", "ja"): {"train": 30, "dev": 30, "test": 30, "translated": 27},
          **{("nli", lang): {"dev": 29, "test": 29, "translated": 38} for lang in ("zh", "sw", "ur")}}


@pytest.mark.parametrize("task, lang", prepare.NEEDS)
def test_each_task_and_language_is_read_by_the_loaders(world, capsys, task, lang):
    root, expected = world.run(task, lang), TARGET[task, lang]
    out = capsys.readouterr().out
    written = {str(p.relative_to(root / task).with_suffix("")) for p in root.rglob("*") if p.is_file()}
    assert written == ENGLISH[task] | {f"{lang}/{split}" for split in expected}
    texts, y, labels = load_task(root, task, "en", "train")
    assert labels == sorted(KINDS if task == "nli" else ("positive", "negative")) and len(texts) == 40
    for split, count in expected.items():
        if split != "translated":
            rows, y, _ = load_task(root, task, lang, split, labels)
            assert len(rows) == count and f"{task}/{lang}/{split}.tsv: {count:,} rows" in out
            assert len(set(y.tolist())) == len(labels) and len(rows[0]) == (2 if task == "nli" else 1)
    if task == "nli":
        english, translations, names = load_translated(root, task, lang, labels=list(KINDS))
        number = [int(re.search(r"\d+", text[0])[0]) for text in english]
        assert sorted(number) == sorted(set(number)) and "1005" not in str(english)
        assert [pair(lang, i) for i in number] == [list(text) for text in translations]
        names = [KINDS[i] for i in names]
        assert names == [KINDS[i % 3] if lang != "ja" else "entailment" for i in number]
        assert len(names) == expected["translated"]
    else:
        assert f"no {lang}/translated.tsv" in out and "data/translate.py" in out
    for name in prepare.NEEDS[task, lang].split():
        assert f"licence of {name}: {prepare.SOURCES[name].licence}" in out
    assert out.splitlines()[-1] == ("next: python step1_embed.py --model xlm-roberta-base "
                                    f"--data {root} --task {task} --out runs/{task}")


@pytest.mark.parametrize("task, lang", prepare.NEEDS)
def test_no_row_of_test_or_dev_stands_elsewhere(world, capsys, task, lang):
    root = world.run(task, lang)

    def rows(place, split, columns):
        path = root / task / place / f"{split}.tsv"
        lines = path.read_text(encoding="utf-8").splitlines()[1:] if path.exists() else []
        return {tuple(re.sub(r"\s", "", text.lower()) for text in line.split("\t")[columns]) for line in lines}

    for place, half in (("en", slice(1, 3)), (lang, slice(3, 5))):
        plain = slice(1, None)
        test, dev = rows(place, "test", plain), rows(place, "dev", plain)
        assert dev and not dev & test and not rows(place, "train", plain) & (dev | test)
        assert not rows(lang, "translated", half) & (dev | test)
    if (task, lang) != ("sentiment", "ja"):
        assert re.search(r"less \d+ dropped that stand in test or dev too", capsys.readouterr().out)


def test_labels_texts_and_drops_are_as_they_should_be(world, capsys):
    root = world.run("sentiment", "ja")
    world.run("sentiment", "zh")
    world.run("sentiment", "ko")
    world.run("nli", "zh")
    world.run("nli", "ja")
    out = capsys.readouterr().out
    assert "pn.tsv: 54 rows, as expected, of train 18, dropped 6 without a label of the task" in out
    assert "ratings_train.txt: 41 rows, as expected, dropped 1 with an empty text" in out
    assert "ko dev: NSMC has none; cut off its train by a fixed shuffle" in out
    assert "zh test, dev: the sources have none; cut off both together by a fixed shuffle" in out
    assert "xnli.test.tsv: 120 rows, as expected, of zh 30, dropped 1 without a label of the task" in out

    def lines(name):
        return (root / name).read_text(encoding="utf-8").split("\n")[1:-1]

    assert all(line.startswith("positive" if "良" in line else "negative") for line in lines("sentiment/ja/test.tsv"))
    assert "悪" in str(lines("sentiment/ja/test.tsv")) and "並" not in str(lines("sentiment/ja/test.tsv"))
    assert all(("fine" in line) == line.startswith("positive") for line in lines("sentiment/en/train.tsv"))
    assert all(re.fullmatch(r"(positive|negative)\t\S+, 他说\"[好坏]\"", row) for row in lines("sentiment/zh/train.tsv"))
    assert all(("好" in line) == line.startswith("positive") for line in lines("sentiment/zh/test.tsv"))
    assert all(re.fullmatch(r"\w+\t영화 \d+ 정말 \w+", line) for line in lines("sentiment/ko/train.tsv"))
    assert lines("nli/en/train.tsv")[0] == 'entailment\t0 birds sit on the "old" roof\tbirds number 0  fly'
    assert lines("nli/ja/test.tsv")[0].split("\t")[1] == "鳥400羽が屋根にいます 続き"


def test_english_files_and_cuts_are_the_same_whatever_was_prepared(world):
    root = world.run("nli", "ko")
    before = listing(root / "nli" / "en")
    world.run("nli", "ur")
    world.run("nli", "ja")
    assert listing(root / "nli" / "en") == before
    world.run("sentiment", "zh")
    before = listing(root / "sentiment")
    world.run("sentiment", "zh")
    assert listing(root / "sentiment") == before


def test_downloads_are_made_once_and_raw_needs_none(world):
    world.run("nli", "ja")
    before = listing(world.tmp / "real")
    count = len(world.server.log)
    assert count == 2 + 3 + 1
    world.run("nli", "ja")
    assert len(world.server.log) == count
    world.server.files.clear()
    (world.tmp / "cache").rename(world.tmp / "mine")
    world.run("nli", "ja", "--raw", str(world.tmp / "mine"))
    assert len(world.server.log) == count and listing(world.tmp / "real") == before


@pytest.mark.parametrize("ranges", [True, False])
def test_a_cut_download_goes_on_or_starts_again(world, ranges):
    world.server.ranges, world.server.cut = ranges, 300
    whole = world.server.files["/SST-2.zip"]
    assert len(whole) > 400
    world.refuse("sentiment", "ja", match=rf"SST-2.zip: cut at 300 of {len(whole):,} bytes, kept in .*SST-2.zip.part; "
                                          "run the same command again")
    assert (world.tmp / "cache" / "SST-2.zip.part").read_bytes() == whole[:300]
    assert not (world.tmp / "cache" / "SST-2.zip").exists()
    world.server.cut = None
    world.run("sentiment", "ja")
    assert world.server.log[1] == ("/SST-2.zip", "bytes=300-")
    assert (world.tmp / "cache" / "SST-2.zip").read_bytes() == whole
    assert [p.name for p in (world.tmp / "cache").iterdir() if p.suffix == ".part"] == []


def test_a_part_that_is_none_of_the_file_is_thrown_away(world):
    whole = world.server.files["/SST-2.zip"]
    (world.tmp / "cache").mkdir()
    (world.tmp / "cache" / "SST-2.zip.part").write_bytes(b"x" * (len(whole) + 5))
    world.run("sentiment", "ja")
    assert (world.tmp / "cache" / "SST-2.zip").read_bytes() == whole


def test_missing_pages_and_networks(world):
    del world.server.files["/JRTE/pn.tsv"]
    world.refuse("sentiment", "ja", match=r"/JRTE/pn.tsv: HTTP 404 .*pn.tsv elsewhere .*--raw")
    source = prepare.SOURCES["SST-2"]
    world.monkeypatch.setitem(prepare.SOURCES, "SST-2", source._replace(url="http://127.0.0.1:9/SST-2.zip"))
    (world.tmp / "cache" / "SST-2.zip").unlink()
    world.refuse("sentiment", "ja", match="127.0.0.1:9/SST-2.zip: .*refused.*run the same command again")


@pytest.mark.parametrize("name, task, lang, new, match", [
    ("SST-2", "sentiment", "ko", (42, 20), r"SST-2.zip/SST-2/train.tsv: 41 rows, not the 42 of SST-2; .*SST-2.zip"),
    ("JNLI", "nli", "ja", (31, 31, 29), "test-v1.3.json: 30 rows, not the 29 of JNLI"),
    ("JRTE", "sentiment", "ja", (55,), "pn.tsv: 54 rows, not the 55 of JRTE"),
    ("waimai", "sentiment", "zh", (39,), "waimai_10k.csv: 40 rows, not the 39"),
    ("XNLI-MT", "nli", "sw", (40, 41, 41, 41), "multinli.train.sw.tsv: 40 rows, not the 41"),
])
def test_a_wrong_count_stops(world, name, task, lang, new, match):
    world.counts[name] = new
    world.put()
    world.refuse(task, lang, match=match)


def test_an_unknown_count_is_printed_and_not_checked(world, capsys):
    world.counts["JRTE"] = (None,)
    world.put()
    world.run("sentiment", "ja")
    assert "JRTE pn.tsv: 54 rows, not checked" in capsys.readouterr().out


@pytest.mark.parametrize("task, lang, name, file, old, new, match", [
    ("nli", "ko", "KorNLI", "xnli.dev.ko.tsv", b"gold_label", b"label",
     r"xnli.dev.ko.tsv:1: no column 'gold_label' in the header 'sentence1 sentence2 label'; .*get it again"),
    ("nli", "zh", "XNLI", "XNLI-1.0/xnli.test.tsv", b"language\t", b"lang\t", "xnli.test.tsv:1: no column 'language'"),
    ("sentiment", "zh", "waimai", "waimai_10k.csv", b"review", b"text", "waimai_10k.csv:1: no column 'review'"),
    ("nli", "ja", "JNLI", "train-v1.3.json", b'"label"', b'"gold"', "train-v1.3.json:1: no JSON object with label"),
    ("nli", "ja", "JNLI", "train-v1.3.json", b'"}\n', b'"\n', "train-v1.3.json:1: no JSON object"),
    ("sentiment", "ja", "JRTE", "pn.tsv", b"pn0\t1", b"pn0\t2", "pn.tsv:1: label '2', not one of 1 0 -1"),
    ("nli", "ko", "KorNLI", "multinli.train.ko.tsv", b"neutral", b"maybe", "multinli.train.ko.tsv:3: label 'maybe'"),
    ("sentiment", "ko", "NSMC", "ratings_test.txt", "영화".encode(), b"\xff\xfe",
     "ratings_test.txt:2: byte 0xff is not"),
    ("sentiment", "ko", "NSMC", "ratings_test.txt", b"\t0\n", b"\t0\t0\n",
     "ratings_test.txt:2: not as many cells as the header, the first of 1 such"),
    ("nli", "ko", "KorNLI", "multinli.train.ko.tsv", b"\tcontradiction\n", b"\tneutral\n",
     "row 3: MNLI/train.tsv says contradiction, multinli.train.ko.tsv says neutral; they must be the same rows"),
    ("nli", "ur", "XNLI-MT", "XNLI-MT-1.0/multinli/multinli.train.ur.tsv", b"\tneutral\n", b"\tentailment\n",
     "row 2: .*multinli.train.en.tsv says neutral, .*multinli.train.ur.tsv says entailment"),
])
def test_a_changed_source_stops_with_file_and_line(world, task, lang, name, file, old, new, match):
    world.change(name, file, old, new)
    world.refuse(task, lang, match=match)


def test_a_join_of_different_lengths_stops(world):
    world.files["KorNLI"]["multinli.train.ko.tsv"] = kornli(range(ROWS - 1))
    world.counts["KorNLI"] = (None, 30, 30)
    world.put()
    world.refuse("nli", "ko", match="MNLI/train.tsv has 40 rows, multinli.train.ko.tsv 39; they must be the same rows")


def test_a_dropped_row_leaves_the_rows_of_a_join_side_by_side(world):
    first = pair("ko", 1)[0].encode()
    world.change("KorNLI", "multinli.train.ko.tsv", b"\n" + first + b"\t", b"\n\t")
    world.change("MNLI", "MNLI/train.tsv", b'\t3 birds sit on the "old" roof\t', b"\t\t")
    english, translations, _ = load_translated(world.run("nli", "ko"), "nli", "ko")
    numbers = sorted(int(re.search(r"\d+", text[0])[0]) for text in english)
    assert numbers == [0, 2, *range(4, ROWS - 1)]
    assert all(list(b) == pair("ko", int(re.search(r"\d+", a[0])[0])) for a, b in zip(english, translations))


def test_a_broken_row_in_thousands_is_dropped_and_counted(world, capsys):
    world.files["NSMC"]["ratings_train.txt"] = nsmc(range(1100, 2400)).replace(b"1200\t", b"1200", 1)
    world.counts["NSMC"] = (1301, 23)
    world.put()
    root = world.run("sentiment", "ko")
    out = capsys.readouterr().out
    assert "ratings_train.txt: 1,301 rows, as expected, dropped 1 of another width, dropped 1 with an empty" in out
    assert len(load_task(root, "sentiment", "ko", "train")[0]) == 1299 - 129


def test_nothing_is_written_when_a_split_is_left_empty(world):
    world.change("JRTE", "pn.tsv", b"\tdev\n", b"\ttest\n", -1)
    world.refuse("sentiment", "ja", match="ja/dev.tsv: no rows are left for it")


def test_unreadable_archives(world):
    world.server.files["/SST-2.zip"] = b"<html>sign in first</html>"
    world.refuse("sentiment", "ko", match="SST-2.zip: unreadable .*delete it and get it again from http")
    (world.tmp / "cache" / "SST-2.zip").unlink()
    world.files["SST-2"] = {"SST-2/train.tsv": sst2(range(5)), "other.tsv": b""}
    world.put()
    world.monkeypatch.setitem(prepare.SOURCES, "SST-2", prepare.SOURCES["SST-2"]._replace(
        files={"SST-2/train.tsv": 5, "SST-2/dev.tsv": 20}))
    world.refuse("sentiment", "ko", match="SST-2.zip: holds no SST-2/dev.tsv")
    archive = bytearray(world.server.files["/XNLI-1.0.zip"])
    archive[len(archive) // 4] ^= 255                        # one flipped bit fails the checksum
    world.server.files["/XNLI-1.0.zip"] = bytes(archive)
    world.refuse("nli", "zh", match="XNLI-1.0.zip: unreadable")


def test_mistakes_of_the_command_line(world):
    (world.tmp / "raw").mkdir()
    (world.tmp / "raw" / "MNLI.zip").write_bytes(b"")
    world.refuse("nli", "ko", "--raw", str(world.tmp / "raw"),
                 match=r"raw/\S+: no such file; --raw needs .*MNLI.zip .*multinli.train.ko.tsv .*xnli.test.ko.tsv.*http")
    assert world.server.log == []
    world.refuse("sentiment", "sw", match="sentiment has ko ja zh")
    refuse(prepare.main, "nli", match="--lang")
    world.refuse("nli", "de", match="invalid choice: 'de'")
    (world.tmp / "file").write_text("")
    refuse(prepare.main, *world.args("sentiment", "ja"), "--root", world.tmp / "file", match="change --root")


def test_exit_status_and_help(tmp_path):
    done = script("data/prepare.py", "nli", "--lang", "ko", "--raw", tmp_path, "--root", tmp_path / "real")
    assert done.returncode == 2 and re.match(r"error: .*no such file; --raw needs", done.stderr)
    assert len(done.stderr.splitlines()) == 1 and not (tmp_path / "real").exists()
    page = script("data/prepare.py", "--help").stdout
    assert all(word in page for word in ("Reads ", "Writes ", "Expect ", "data/prepare.py nli", "--raw", "default:"))


def test_printed_commands_parse():
    readme = (ROOT / "data" / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^ +python data/prepare.py ([^#\n]+)", readme + prepare.__doc__, re.M)
    assert len(found) == 4 and all(prepare.get_args(command.split()) for command in found)


def test_the_table_is_complete_and_agrees_with_data_readme():
    section = (ROOT / "data" / "README.md").read_text(encoding="utf-8").split("## Public data")[1].split("\n## ")[0]
    assert {name for names in prepare.NEEDS.values() for name in names.split()} == set(prepare.SOURCES)
    for name, source in prepare.SOURCES.items():
        line = next(line for line in section.splitlines() if line.startswith(f"| {name} |"))
        assert source.licence in line and source.url.startswith("https://")
        for count in source.files.values():
            assert f"{count:,}" in line, (name, count)
