"""data/convert.py: any usual CSV, TSV or JSON becomes our files, and no row or label changes unsaid."""

import json
import re
import unicodedata

import pytest
from conftest import error_line, read_table

import common
import convert


@pytest.fixture
def go(tmp_path):
    """Write a file, convert it, return the rows of train.tsv without the header."""

    def run(content, *args, columns=("--text", "text", "--label", "stars")):
        (tmp_path / "in.txt").write_bytes(content if type(content) is bytes else content.encode())
        out = tmp_path / "mine/reviews/en/train.tsv"
        convert.main([str(tmp_path / "in.txt"), *columns, "--out", str(out), "--force", *args])
        return read_table(out)[1:]

    return run


def json_lines(labels, rows=30):
    """JSON lines whose labels repeat `labels`."""
    rows = [{"text": f"film {i}", "stars": labels[i % len(labels)]} for i in range(rows)]
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    "content",
    [
        'id,stars,text\r\n1,5,"""good"", he said;\r\n\ttwice"\r\n2,1,bad\r\n',
        'sep=;\r\nid;stars;text\r\n1;5;"""good"", he said; twice"\r\n2;1;bad\r\n;;\r\n',  # Excel
        'stars\ttext\n5\t"""good"", he said; twice"\n1\tbad\n',  # Excel's tab export
        'stars\ttext\n5\t"good", he said; twice\n1\tbad\n',  # quotes are quotes
        'stars,text\n5,"\\"good\\", he said; twice"\n1,bad\n',
        '[{"stars": 5, "text": "\\"good\\", he said;\\ttwice"},\n{"stars": 1, "text": "bad"}]',
    ],
)
def test_any_delimiter_and_quoting(go, content):
    assert go(content) == [["5", '"good", he said; twice'], ["1", "bad"]]


def test_encodings_and_composed_text(go):
    for encoding, args in (("utf-8-sig", ()), ("utf-16", ()), ("cp949", ("--encoding", "cp949"))):
        text = "stars,text\n좋음,새 영화\n나쁨,옛 영화\n"
        written = text if args else unicodedata.normalize("NFD", text)
        assert go(written.encode(encoding), *args) == [["좋음", "새 영화"], ["나쁨", "옛 영화"]]


def test_no_quote_swallows_rows(go, capsys):
    rows = [f"{('pos', 'neg')[i % 2]}\troom {i}" for i in range(60)]
    rows[10], rows[25] = 'pos\t"Lovely stay', 'neg\tonly 19"'
    assert ["neg", "room 11"] in go("\n".join(["stars\ttext", *rows]))
    assert "the quotes in " in capsys.readouterr().out
    rows[15] += "\tand more"  # without quoting this line is too wide
    assert len(go("\n".join(["stars\ttext", *rows]))) == 45
    assert "txt:12: quoted text holds lines that look like" in capsys.readouterr().err
    for content in (
        'stars,text\npos,"1,000 good\nneg,bad 2,000"\nneg,cold\n',
        'id,text,stars\n1,"well,good,pos\n2,so,bad 2,000",neg\n3,fine,pos\n',
    ):
        assert len(go(content)) == 2 and "txt:2: quoted text holds" in capsys.readouterr().err
    texts = [f'"first {i}, yes\nsecond, pos\nthird",{("pos", "neg")[i % 2]}' for i in range(20)]
    assert go("\n".join(["text,stars", *texts]))[1] == ["neg", "first 1, yes second, pos third"]
    assert not capsys.readouterr().err


def test_rows_are_renamed_dropped_and_counted(go, capsys):
    content = "stars,text\n5,good\n5 ,good\n1,bad\nstars,text\n3,so so\n1,\n,lost\n1,NaN\n"
    assert go(content, "--rename", "1=neg,5=pos") == [["pos", "good"], ["neg", "bad"]]
    out = capsys.readouterr().out
    for why in ("1 equal to an earlier row: 'good' 1", "1 repeating the header", "1 with a label"):
        assert f"dropped {why}" in out
    assert "3 without a text or label: '' 2, 'NaN' 1" in out and "labels: 'pos' 1, 'neg' 1" in out
    assert re.search("next: python step1_embed.py --model intfloat/.* --task reviews", out)


def test_what_programs_write_for_missing_is_no_label_unless_it_is_named(go):
    missing = [None, float("nan"), "None", "NA", "N/A", "<NA>", "NULL", "null", "#N/A", " ", []]
    missing += ["Null", "(null)", "undefined", "-nan", "-NaN", "#N/A N/A", "#NV", "Loading..."]
    assert {row[0] for row in go(json_lines(["pos", "neg", *missing]))} == {"pos", "neg"}
    rows = go(json_lines(["pos", "None"]), "--rename", "pos=pos,None=neutral")
    assert {row[0] for row in rows} == {"pos", "neutral"}


def test_rename_takes_any_label(go):
    for given, made in (r"a\, b=x,a\=b=y", "xy"), (r"a\, b=a\=b,a\=b=\N", ["a=b", r"\N"]):
        rows = go(json_lines(["a, b", "a=b", "a"]), "--rename", given)
        assert {row[0] for row in rows} == {*made}


def test_spellings_of_a_number_are_one_label(go, capsys):
    ones = ["1", 1.0, "+1", "01", 1, "1e0", "1.000000e+00", -1, "-1.0", "\u22121"]
    assert {row[0] for row in go(json_lines(ones))} == {"1", "-1"}
    assert "labels look alike: ['1', '-1']; numbers" in capsys.readouterr().err
    go(json_lines(["Good", "good", "bad"]))
    assert re.search("labels look alike: .'good'.; .* --rename", capsys.readouterr().err)
    go(json_lines(["Good", "good", "bad"]), "--rename", "Good=good,good=good,bad=bad")
    assert not capsys.readouterr().err
    rows = go(json_lines(["1.0", "-1.0"]), "--rename=-1=negative,1=positive")
    assert {row[0] for row in rows} == {"positive", "negative"}
    assert {row[0] for row in go(json_lines([True, "False"]))} == {"true", "false"}
    rows = go(json_lines([[".5"], "['2']", '["10"]', ["a, b"], '["a, c"]']))
    assert {row[0] for row in rows} == {"0.5", "2", "10", "a, b", "a, c"}  # lists of one


def test_one_label_may_hold_delimiters_and_several_may_not(go):
    labels = {"news/us", "news/world", "sport/us", "arts & crafts", "arts", "C++", "C", "C#"}
    assert {row[0] for row in go(json_lines([*labels], 80))} == labels
    several = ["a|c", "a||b", "a#b", "a，c", "a、b", "a/b", "a+b", "a & b", "a b", "a\nb"]
    several += ["[0. 1.]", "[1 2]", "{'a'}", '{"c": 1}', [{"c": 1}], ["a", "b"]]
    for label in several:
        with pytest.raises(common.UserError, match="several labels or a list per row"):
            go(json_lines(["a", "b", label]))


def test_split_keeps_rows_of_one_premise_on_one_side(go, tmp_path):
    rows = [f"n,premise {i // 3},hypothesis {i}" for i in range(60)]
    columns = ("--text", "a", "--text-b", "b", "--label", "l")
    train = go("\n".join(["l,a,b", *rows]), "--split", "0.2", columns=columns)
    dev = read_table(tmp_path / "mine/reviews/en/dev.tsv")[1:]
    assert len(train) == 48 and len(dev) == 12 and len({tuple(row) for row in train + dev}) == 60
    assert not {row[1] for row in train} & {row[1] for row in dev}


def test_pairs_without_labels_become_translated_tsv(tmp_path, capsys):
    source, out = tmp_path / "a.tsv", tmp_path / "mine/t/ko/translated.tsv"
    source.write_text("en\tko\na\t가\nb\t나\n", encoding="utf-8")
    flags = [str(source), "--text", "en", "--translation", "ko", "--out", str(out)]
    convert.main(flags)
    assert read_table(out) == [["label", "text", "translation"], ["", "a", "가"], ["", "b", "나"]]
    assert "next: python step2_align.py --lang ko --out runs/t" in capsys.readouterr().out
    with pytest.raises(common.UserError, match="exists; .*--force"):
        convert.main(flags)


def test_labels_that_are_no_classes_are_a_warning(go, capsys):
    for labels, match in (
        (["5"], "classes in 300 rows: 1; is --label the label's column"),
        ([*range(300)], "classes in 300 rows: 300; is --label the label's column"),
        ([i / 2 for i in range(5)], "classes in 300 rows: 5; .* Scores, ids"),
        (["neutral", "-"], "label '-' have no agreed label in SNLI"),
    ):
        go(json_lines(labels, 300))
        assert re.search(match, capsys.readouterr().err)
    go("stars,text,answer\n1,a,accept\n5,a,accept\n1,b,accept\n5,c,accept\n5,d,reject\n")
    assert re.search(r"left out: 1\n.*also has another label: 1", capsys.readouterr().err)


CSV = b"stars,text\n1,a\n5,b\n"


@pytest.mark.parametrize(
    "content, args, match",
    [
        (b"id,review\n1,a\n", "", "no column 'stars'; its columns are: id, review"),
        (b"stars,text\n1,\xbf\xb5\n", "", "txt:2: not utf-8 text; .* such as cp949"),
        (b"stars,text\n1,a,b\n5,c\n", "", "txt:2: not the 2 cells of the header"),
        (b'"stars","text"\n"1","a"\n"5","b "c" d"\n', "", "txt:3: .* a quote that does not end"),
        (b"stars,text\n1,\n", "", "0 of 1 rows are left; dropped 1 without a text or label"),
        (CSV, "--rename 2=a", "no label '2' .* has '1' 1, '5' 1"),
        (CSV, "--rename 1=a,1.0=b", r"is not like 1=negative,5=positive, where \\, and"),
        (CSV, "--out train.tsv", "train.tsv: expected <root>/<task>/<lang>"),
        (CSV, "--text stars", "each flag needs its own column"),
        (CSV, "--split 10", "--split 10: expected a share"),
        (json_lines([{"a": 1}]), "", "object 1 holds an object"),
        (b'{"stars": 1, "text": "a"}\n{"stars": 1, "text": "\\ud83d"}', "", "object 2 .*half an"),
        (b'{"stars": 1, "text": "a"}\n{"stars": 1,', "", "txt:2: .*JSON objects, one per line"),
    ],
)
def test_mistakes(tmp_path, content, args, match):
    (tmp_path / "in.txt").write_bytes(content if type(content) is bytes else content.encode())
    flags = f"--text text --label stars --out {tmp_path}/mine/t/en/train.tsv {args}".split()
    line = error_line(lambda: convert.main([str(tmp_path / "in.txt"), *flags]))
    assert re.search(match, line), line
    assert [*tmp_path.iterdir()] == [tmp_path / "in.txt"]  # nothing was written
