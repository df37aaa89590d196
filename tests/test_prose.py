"""The documents keep the limits of tests/prose.py, and a text that breaks them is caught."""

import prose


def test_documents_read_well(capsys):
    assert prose.main([]) == 0, capsys.readouterr().out


def test_bad_text_is_caught(tmp_path, monkeypatch, capsys):
    bad = f"# Title\n\nIt works; it is fast; see it.\n\n- {'word ' * 36}\n\nMend this, too.\n"
    monkeypatch.setattr(prose, "ROOT", tmp_path)
    (tmp_path / "bad.md").write_text(bad)
    assert prose.main(["bad.md"]) == 1
    output = capsys.readouterr().out
    for place in ("line 3, line 3", "line 5: 36 words", "line 7: 'Mend'", "line 7: ', too'"):
        assert place in output


def test_code_and_tables_are_no_prose():
    text = "```\na; told\n```\n| a; | b |\n\n    c; d\n\nRead `a; b` [once\nmore](x;y). Is it?\n"
    assert [value for _, value, *_ in prose.measure("a.md", text)] == [0, 4, 0]
    assert prose.measure("a.md", text + "\n| 3 MB a language | anew |\n")[2][1] == 2
