"""One HTML page about a run that needs no server, no network and no other file."""

import base64
import math
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np

from spiketriton.config import Recipe
from spiketriton.config.names import BLOCK_NETS
from spiketriton.diagnose.diagnosed import shown_by
from spiketriton.evaluate import event_pictures
from spiketriton.evaluate import pictures as evaluation_pictures
from spiketriton.evaluate.results import Evaluation
from spiketriton.evaluate.tables import layers_table, steps_table
from spiketriton.evaluate.tables import verdict as run_in_sentences
from spiketriton.gradients.measurement import Measurement, Signal
from spiketriton.gradients.verdict import judge
from spiketriton.runs.folder import RunFolder
from spiketriton.runs.state import read_state
from spiketriton.show import run_pictures
from spiketriton.show.figures import png, style
from spiketriton.show.screen import Table
from spiketriton.show.verdict import line, sentences
from spiketriton.show.words import in_words, scored
from spiketriton.system.errors import UserError, one_line
from spiketriton.system.plain import of_plain
from spiketriton.training import environment

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 160
HINT = '<p class="hint">scroll sideways for the rest &rarr;</p>'  # on a narrow screen

CSS = """
:root { --ink: #1a202c; --soft: #4a5568; --line: #e2e8f0; --blue: #2b6cb0; --page: #fff; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 1.5rem 1rem 4rem; color: var(--ink);
  background: var(--page); font: 16px/1.55 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .8rem; border-bottom: 1px solid var(--line);
  padding-bottom: .3rem; }
p, li { color: var(--soft); }
nav a { margin-right: 1rem; color: var(--blue); white-space: nowrap; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem;
  margin: 1.2rem 0; }
.facts div { border: 1px solid var(--line); border-radius: 8px; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.35rem; line-height: 1.3; }
.facts span { color: var(--soft); font-size: .85rem; }
.wide { overflow-x: auto; }
.wide th:first-child, .wide td:first-child { position: sticky; left: 0; background: var(--page); }
.hint { display: none; color: var(--soft); font-size: .8rem; margin: .4rem 0 .2rem; }
@media (max-width: 720px) {
  .hint { display: block; }
  .wide, figure { border-right: 2px solid var(--line); }
}
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: right; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th, td:first-child { white-space: normal; overflow-wrap: anywhere; }
th { overflow-wrap: normal; vertical-align: bottom; }
td:first-child { min-width: 7rem; }
th:first-child, td:first-child { text-align: left; }
tr.own td { font-weight: 600; }
figure { margin: 1rem 0; overflow-x: auto; }
img { display: block; width: 100%; height: auto; }
.still img { min-width: 520px; }
.still img.two { min-width: 700px; }
.moving img { width: 256px; image-rendering: pixelated; border: 1px solid var(--line); }
figcaption { color: var(--soft); font-size: .85rem; }
pre { background: #f7fafc; border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; font-size: .82rem; line-height: 1.45; }
.note { border-left: 4px solid #dd6b20; padding: .3rem .9rem; background: #fffaf0; }
@media print { nav { display: none; } h2 { break-after: avoid; } figure { break-inside: avoid; } }
"""


class Page:
    """A run's page. `evaluations` begins with the run's own, or is empty for a page without them."""

    def __init__(self, folder: RunFolder, recipe: Recipe, evaluations: list[Evaluation]) -> None:
        self.folder, self.recipe, self.evaluations = folder, recipe, evaluations
        self.main = evaluations[0] if evaluations else None
        self.rows = folder.metrics.read()
        self.title = f"{recipe.name} on {recipe.data.label}"

    def html(self, mark: str = "spiketriton") -> str:
        """The page. `mark`: what it says about who wrote it (`runs.outputs`)."""
        title = escape(self.folder.path.resolve().name)
        name = in_words(self.main.at(1)).capitalize() if self.main else "Accuracy"
        sections = {
            name: self.accuracy,
            "Events": self.events,
            "Cost": self.cost,
            "Training": self.training,
            "Gradients": self.gradients,
            "Activity": self.activity,
            "Recipe": self.keys,
            "Environment": self.environment,
            "Commands": self.commands,
        }
        with style():
            shown = {head: body for head, part in sections.items() if (body := "".join(part()))}
        links = "".join(f'<a href="#{head.lower()}">{head}</a>' for head in shown)
        bodies = "".join(
            f'<section id="{head.lower()}"><h2>{head}</h2>{body}</section>\n'
            for head, body in shown.items()
        )
        warning = ""
        if self.recipe.data.name == "synthetic":
            warning = '<p class="note">The images are synthetic noise: accuracies mean nothing.</p>'
        return (
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            f'<meta name="generator" content="{mark}">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{title} - spiketriton</title><style>{CSS}</style></head><body>\n"
            f"<header><h1>{title}</h1><p>{escape(self.subtitle())}</p></header>{warning}"
            f"{self.facts()}<nav>{links}</nav>\n{bodies}"
            f"<footer><p>{escape(environment.version_line())}</p></footer></body></html>\n"
        )

    def subtitle(self) -> str:
        recipe, neuron = self.recipe, self.recipe.neuron
        if neuron.kind == "relu":
            return f"{recipe.model.name}, ANN twin (ReLU), on {recipe.data.label}"
        surrogate = neuron.surrogate
        blocks = f"{recipe.model.block} blocks, " if recipe.model.name in BLOCK_NETS else ""
        slope = f"{surrogate.shape}, height {surrogate.height:g}, width {surrogate.width}"
        return (
            f"{recipe.model.name}, {blocks}{neuron.kind.upper()} neurons with "
            f"{neuron.resets_by} reset, T = {recipe.time_steps}, on {recipe.data.label}"
            + ("" if neuron.kind == "ilif" else f"; surrogate {slope}")
        )

    def facts(self) -> str:
        facts: list[tuple[str, str]] = []
        if (main := self.main) is not None:
            at = main.time_steps - 1
            low, high = main.interval[at]
            score = main.at(main.time_steps)
            tested = f"{in_words(score)} on {main.tested}"
            if not math.isnan(low):
                tested += f", 95 %: {100 * low:.1f}-{100 * high:.1f}"
            active = "active" if main.kind == "ann" else "spike in a step"
            facts = [(scored(score), tested)]
            facts += [(f"{main.time_steps}", f"time steps, read: {main.read}")]
            if not main.uncounted:
                energy = f"energy of one {main.what} (operations)"
                facts += [(f"{main.energy_uj[at]:.3g} µJ", energy)]
            facts += [(f"{100 * main.mean_rate:.1f} %", f"of the neurons {active}")]
            facts += [(f"{main.images_per_s:,.0f}", f"{main.what}s/s")]
        if self.rows:
            last = self.rows[-1]
            facts += [(f"{last['epoch']:g}", f"epochs, {last['seconds'] / 60:.1f} minutes")]
        boxes = (f"<div><b>{escape(b)}</b><span>{escape(s)}</span></div>" for b, s in facts)
        return f'<div class="facts">{"".join(boxes)}</div>'

    def accuracy(self) -> Iterator[str]:
        if (main := self.main) is None:
            return
        every, title = self.evaluations, self.title
        name = in_words(main.at(1))
        yield _figure(evaluation_pictures.accuracy(every, title), f"{name} by time steps")
        yield _list(run_in_sentences(one, every) for one in every)
        yield _figure(evaluation_pictures.confusion(main, title), "confusion matrix")
        head = ("class", f"test {main.what}s", "accuracy")
        if main.confusion:
            yield _table(Table(head, list(_class_rows(main))))

    def events(self) -> Iterator[str]:
        """Recordings of event cameras: some frame by frame, one moving; accuracy by milliseconds."""
        main, title = self.main, self.title
        if main is None or not main.samples:
            return
        frames = event_pictures.frames(main, title)
        latency = event_pictures.latency(self.evaluations, title)
        yield _figure(frames, "frames of recordings and the predictions after each")
        yield _figure(latency, "accuracy by milliseconds of the recording")
        data = base64.b64encode(event_pictures.animation(main.samples[0])).decode()
        words = escape(event_pictures.caption(main, main.samples[0]))
        yield (
            f'<figure class="moving"><img alt="{words}" src="data:image/gif;base64,{data}">'
            f"<figcaption>{words}</figcaption></figure>"
        )

    def cost(self) -> Iterator[str]:
        if (main := self.main) is None:
            return
        yield _table(steps_table(self.evaluations))
        yield (
            f"<p>Energy of one {main.what} at 45 nm, 32 bit: 4.6 pJ a multiply-accumulate, 0.9 pJ an "
            "accumulate. With data: 5 pJ more for each word read or written, with no reuse, in the "
            "spiking net and in the ANN alike. Neither is a measurement.</p>"
        )
        figure = evaluation_pictures.energy(self.evaluations, self.title)
        yield _figure(figure, f"{in_words(main.at(1))} against energy")

    def training(self) -> Iterator[str]:
        figure = run_pictures.curves(self.rows, self.title)
        if figure is not None:
            yield _figure(figure, "loss, accuracy, learning rate and gradient norm by epoch")
            return
        made, said = read_state(self.folder)[0].get("conversion"), "The run has logged nothing yet."
        if made is not None:
            said = f"Converted from {made['source']}, not trained: method {made['method']}."
        yield f"<p>{escape(said)}</p>"

    def gradients(self) -> Iterator[str]:
        folder = self.folder
        rows = folder.gradients.read()
        try:
            figure = run_pictures.gradients(rows, self.title)
        except ValueError as error:
            raise UserError(f"{folder.gradients.path} is damaged: {error}") from None
        if (judged := _judged(folder)) is not None:
            step, measured, signal = judged
            facts: dict[str, Any] = {}
            if any(folder.checkpoints.glob("*.pt")):
                facts = read_state(folder)[0].get("data") or {}
            learned = shown_by(folder, math.inf, self.recipe, facts.get("class_counts", ()))
            verdict = judge(
                measured, self.recipe, signal, learned, begun=step > 0 or bool(self.rows)
            )
            last = max([step, *(row["step"] for row in self.rows)])
            yield f"<p><strong>After step {last}: {escape(line(verdict))}.</strong></p>"
            yield _list(sentences(verdict))
        if figure is not None:
            yield _figure(figure, "gradient by layer and time step")

    def activity(self) -> Iterator[str]:
        main, title = self.main, self.title
        if main is None:
            return
        sample = evaluation_pictures.sample(main, title)
        yield _figure(sample, "one test image, its predictions and its spikes")
        if (rates := evaluation_pictures.rates(main, title)) is None:
            return
        yield _figure(rates, "activity by layer and time step")
        yield _table(layers_table(main))

    def keys(self) -> Iterator[str]:
        yield f"<pre>{escape(self.folder.recipe.read_text('utf-8'))}</pre>"

    def environment(self) -> Iterator[str]:
        for session in self.folder.sessions():
            body = [(key, str(value)) for key, value in session.items() if value is not None]
            yield _table(Table(("session", str(session.get("time", ""))), body))

    def commands(self) -> Iterator[str]:
        folder, recipe, main = self.folder, self.recipe, self.main
        path = shlex.quote(str(folder.path))
        lines = [str(s["command"]) for s in folder.sessions() if "command" in s]
        against = " ".join(shlex.quote(one.run) for one in self.evaluations[1:])
        tail = (f" --against {against}" if against else "") + " --trust-plugins" * recipe.names_code
        part = ""
        every = main and (recipe.data.test_images or main.available or main.images)
        if main is not None and main.images != every:
            part = f" --images {main.images}"
        lines += [f"spiketriton evaluate {path}{part}{tail}", f"spiketriton report {path}{tail}"]
        yield f"<pre>{escape(chr(10).join(lines))}</pre>"


def _class_rows(one: Evaluation) -> Iterator[tuple[str, str, str]]:
    """Each class with its accuracy, the worst first."""
    rows = zip(one.classes, map(sum, one.confusion), one.class_accuracy, strict=True)
    for name, images, accuracy in sorted(rows, key=lambda row: (row[1] == 0, row[2])):
        yield name, f"{images:,}", f"{100 * accuracy:.1f} %" if images else "-"


def _judged(folder: RunFolder) -> tuple[int, Measurement, Signal] | None:
    """The step at which the training judged its net last, and what it measured then; None where it did not."""
    rows = folder.judged.read()
    try:
        for row in rows[-1:]:
            measured = Measurement.of_rows(of_plain(list[dict[str, Any]], row["rows"]))
            overlap = np.array(of_plain(list[float], row["overlap"]))
            if len(of_plain(tuple[str, ...], measured.names)) != len(overlap):
                raise ValueError(f"{len(overlap)} layers keep something of an image")
            weights = of_plain(dict[str, float], row["weights"])
            arrives, chain = (of_plain(bool, row[name]) for name in ("arrives", "chain"))
            memory, apart = of_plain(str, row["memory"]), of_plain(tuple[float, ...], row["apart"])
            signal = Signal(overlap, arrives, chain, memory, apart)
            return of_plain(int, row["step"]), replace(measured, weights=weights), signal
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise UserError(f"{folder.judged.path} is damaged: {one_line(error)}") from None
    return None


def _list(items: Iterable[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(text)}</li>' for text in items)}</ul>"


def _table(table: Table) -> str:
    """The table, with its bold rows marked, and what it means."""

    def row(cells: Sequence[str], tag: str, marked: bool = False) -> str:
        inner = "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)
        return f'<tr class="own">{inner}</tr>' if marked else f"<tr>{inner}</tr>"

    rows = "".join(row(cells, "td", place in table.bold) for place, cells in enumerate(table.rows))
    hint = HINT if len(table.head) > 3 else ""
    legend = f"<p>{table.legend}</p>" if table.legend else ""
    return (
        f'{hint}<div class="wide"><table><thead>{row(table.head, "th")}</thead><tbody>{rows}</tbody></table></div>'
        + legend
    )


def _figure(figure: "Figure | None", words: str) -> str:
    """A picture inline, which scrolls on a phone: there its words would be too small to read; "" without one."""
    if figure is None:
        return ""
    panels = ' class="two"' if figure.get_figwidth() > 9 else ""
    data = base64.b64encode(png(figure, DPI)).decode()
    image = f'<img{panels} alt="{escape(words)}" src="data:image/png;base64,{data}">'
    return f'{HINT}<figure class="still">{image}</figure>'
