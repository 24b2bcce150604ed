from tfmacer import demo


def test_it_starts_nothing_for_what_it_does_not_know(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert demo.main(["--epochs=1"]) == 2
    assert "epochs" in capsys.readouterr().err
    assert demo.main(["--help"]) == 0
    assert "writes to runs/demo" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []
