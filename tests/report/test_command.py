"""The report: one page that stands alone, holds what was asked for, and says what is missing."""

import shutil
from html.parser import HTMLParser

import pytest

from spiketriton.convert.__main__ import main as convert_main
from spiketriton.evaluate.__main__ import main as evaluate_main
from spiketriton.evaluate.evaluation import evaluate
from spiketriton.report.__main__ import main, refuse_other_data, stored_evaluation
from spiketriton.runs.folder import RunFolder
from spiketriton.system.errors import UserError
from tests.show.support import evaluation
from tests.small_runs import QUICK, refused, small_trainer

pytestmark = pytest.mark.usefixtures("blank_pictures")


class Page(HTMLParser):
    """What a browser would see: sections, pictures, links and words; tags must be balanced."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: dict[str, list[str]] = {name: [] for name in ("id", "alt", "src", "href")}
        self.words: dict[str, str] = {}
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.open += [tag] if tag not in ("meta", "img") else []
        for key, value in attributes:
            self.found.get(key, []).append(value)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        where = self.found["id"][-1] if "section" in self.open else ""
        self.words[where] = self.words.get(where, "") + data + " "


@pytest.fixture(scope="module")
def compared(runs, tmp_path_factory):
    """The runs, one under a name that HTML must escape, and the ANN converted."""
    root = tmp_path_factory.mktemp("compared")
    shutil.copytree(runs / "lif", root / "a <b> & c")
    shutil.copytree(runs / "ann", root / "ann")
    convert_main([str(root / "ann"), "--run-dir", str(root / "net"), "--steps", "4"])
    return root


def test_the_page_stands_alone_and_holds_everything(compared, tmp_path):
    out = tmp_path / "page.html"
    others = [str(compared / "ann"), str(compared / "net")]
    main([str(compared / "a <b> & c"), "--against", *others, "--out", str(out)])
    text = out.read_text("utf-8")
    page = Page(text)
    sections = [
        "accuracy",
        "cost",
        "training",
        "gradients",
        "activity",
        "recipe",
        "environment",
        "commands",
    ]
    assert page.found["id"] == sections
    assert page.found["href"] == [f"#{section}" for section in sections]
    assert len(page.found["alt"]) == len(page.found["src"]) == 7
    assert all(source.startswith("data:image/png;base64,") for source in page.found["src"])
    assert "url(" not in text
    assert "width=device-width" in text
    for words in ("a <b> & c (lif)", " ann ", "net (converted, balanced)"):
        assert words in page.words["cost"], words
    assert 'name = "resnet8"' in page.words["recipe"]
    assert "--against" in page.words["commands"]
    assert "ANN twin's energy" in page.words["accuracy"]


def test_a_stored_evaluation_is_shown_and_a_stale_one_is_not(runs, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run"
    shutil.copytree(runs / "lif", path)
    monkeypatch.setattr("spiketriton.evaluate.pictures.draw_evaluations", lambda *_: [])
    monkeypatch.setattr("spiketriton.report.page.Page.html", lambda *_: "x" * 7 * 2**19)
    evaluate_main([str(path), "--images", "20", "--json"])
    calls = []

    def spy(run, *rest):
        calls.append(run)
        return evaluate(run, *rest)

    monkeypatch.setattr("spiketriton.evaluate.evaluation.evaluate", spy)
    main([str(path)])
    assert not calls
    assert capsys.readouterr().out.endswith("report.html: 3.5 MiB; open it in a browser\n")
    assert (path / "report.html").is_file()
    stored = path / "evaluation" / "evaluation.json"
    stored.write_text(stored.read_text().replace('"training_step": 7', '"training_step": 6'))
    main([str(path)])
    assert len(calls) == 1


def test_without_evaluation_the_run_folder_is_enough(compared, tmp_path):
    out = tmp_path / "page.html"
    main([str(compared / "ann"), "--no-evaluation", "--out", str(out)])
    page = Page(out.read_text("utf-8"))
    assert page.found["id"] == ["training", "recipe", "environment", "commands"]


def test_mistakes_are_named(compared, tmp_path):
    run = str(compared / "ann")
    assert "does not exist" in refused(main, [str(tmp_path / "nothing")])
    assert "no effect" in refused(main, [run, "--against", run, "--no-evaluation"])
    assert "is a folder" in refused(main, [run, "--no-evaluation", "--out", str(tmp_path)])
    (tmp_path / "no").write_text("a file")
    nowhere = str(tmp_path / "no" / "folder.html")
    assert "cannot be written" in refused(main, [run, "--no-evaluation", "--out", nowhere])
    small_trainer(tmp_path / "other", *QUICK, "data.name=synthetic", "train.max_steps=1").fit()
    assert "same data" in refused(main, [run, "--against", str(tmp_path / "other")])
    (tmp_path / "other" / "environment.json").write_text("{")
    assert "environment.json" in refused(main, [str(tmp_path / "other"), "--no-evaluation"])


def test_only_an_evaluation_of_the_last_checkpoint_serves(tmp_path, monkeypatch):
    folder = RunFolder.create(tmp_path / "run", "x")
    monkeypatch.setattr("spiketriton.runs.state.read_state", lambda _: ({"step": 7}, "last"))
    assert stored_evaluation(folder) is None
    (folder.path / "evaluation").mkdir()
    for checkpoint, step, serves in (("last", 7, True), ("best", 7, False), ("last", 6, False)):
        found = evaluation(checkpoint=checkpoint, training_step=step)
        (folder.path / "evaluation" / "evaluation.json").write_text(found.to_json())
        assert (stored_evaluation(folder) is not None) == serves


def test_a_run_of_another_task_is_not_compared():
    refuse_other_data([evaluation(), evaluation(run="runs/other")])
    with pytest.raises(
        UserError, match=r"runs/other was tested on .*runs of the same data and task"
    ):
        refuse_other_data([evaluation(), evaluation(run="runs/other", score="squares")])
