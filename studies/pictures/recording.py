"""Draws docs/img/quickstart.svg and diagnosis.svg: what commands print, line by line, as it came.

    python studies/pictures/recording.py        # trains for about a minute

A film lasts ten seconds and begins again; where a picture does not move, its last lines are seen.
"""

import html
import os
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

FILMS = {
    "quickstart": ["spiketriton train quickstart"],
    "diagnosis": [
        "spiketriton train digits_rows neuron.kind=lif | grep '^test accuracy'",
        "spiketriton diagnose digits_rows neuron.kind=lif | grep -A 5 '^conclusion'",
        "spiketriton train digits_rows neuron.kind=psn | grep '^test accuracy'",
    ],
}
COLUMNS, ROWS = 100, 24
FILM, STILL = 10.0, 5.0  # seconds for all lines, and for the last ones before it begins again
CHARACTER, LINE, MARGIN = 7.85, 18, 14  # pixels of a monospaced font of 13


def record(commands: list[str]) -> list[tuple[float, str]]:
    """The lines of the commands, each with the seconds after which it came; a prompt stands before a command."""
    lines = []
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            lines.append((time.monotonic() - began, f"$ {command}"))
            running = subprocess.Popen(
                command.replace("spiketriton", f"{sys.executable} -m spiketriton", 1),
                shell=True,
                cwd=folder,
                env=os.environ | {"COLUMNS": str(COLUMNS), "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            assert running.stdout is not None
            for line in running.stdout:
                after = time.monotonic() - began
                parts = textwrap.wrap(line.rstrip(), COLUMNS, drop_whitespace=False) or [""]
                lines += [(after, part.rstrip()) for part in parts]
            if running.wait():
                raise SystemExit("\n".join(line for _, line in lines))
    return lines


def drawn(lines: list[tuple[float, str]]) -> str:
    """An SVG in which each line appears at its share of the film, and earlier ones make room above."""
    commands = [line[2:] for _, line in lines if line.startswith("$ ")]
    rows = min(ROWS, len(lines))
    width, height = COLUMNS * CHARACTER + 2 * MARGIN, rows * LINE + 2 * MARGIN
    whole, last = FILM + STILL, lines[-1][0]
    shown = [100 * (FILM * seconds / last) / whole for seconds, _ in lines]  # per cent of the film
    moved = [-LINE * max(0, i + 1 - rows) for i in range(len(lines))]
    steps = "".join(
        f"{at:.2f}%{{transform:translateY({up}px)}}"
        for at, up in zip(shown, moved, strict=True)
        if up
    )
    style = [
        "text{font:13px ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;fill:#d7dae0}",
        ".prompt{fill:#7ee787}.good{fill:#79c0ff}",
        f"#screen{{animation:scroll {whole:g}s step-end infinite}}",
        f"@keyframes scroll{{0%{{transform:translateY(0)}}{steps}}}",
    ]
    texts = []
    for i, (at, (_, line)) in enumerate(zip(shown, lines, strict=True)):
        kind = "prompt" if line.startswith("$ ") else "good" if "accuracy" in line else ""
        style.append(f"@keyframes l{i}{{0%{{opacity:0}}{at:.2f}%{{opacity:1}}}}")
        texts.append(
            f'<text class="{kind}" x="{MARGIN}" y="{MARGIN + LINE * (i + 1) - 5}"'
            f' style="animation:l{i} {whole:g}s step-end infinite">{html.escape(line).replace(" ", chr(0xA0))}</text>'
        )
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}"'
            f' viewBox="0 0 {width:.0f} {height}" role="img">',
            f"<title>{html.escape(commands[0])}, {last:.0f} seconds in {FILM:g}</title>",
            f"<style>{''.join(style)}</style>",
            f'<clipPath id="frame"><rect y="{MARGIN}" width="{width:.0f}" height="{rows * LINE}"/></clipPath>',
            f'<rect width="{width:.0f}" height="{height}" rx="8" fill="#0d1117"/>',
            f'<g clip-path="url(#frame)"><g id="screen" transform="translate(0 {moved[-1]})">',
            *texts,
            "</g></g>",
            "</svg>\n",
        ]
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or FILMS:
        picture = Path(__file__).parents[2] / "docs" / "img" / f"{name}.svg"
        picture.write_text(drawn(record(FILMS[name])), "utf-8")
        print(picture)
