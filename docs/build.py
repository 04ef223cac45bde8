"""Builds docs/*.md into HTML in docs/_site, and keeps the generated IR reference up to date.

``python docs/build.py`` writes the site; ``--reference`` rewrites docs/ir-reference.md from the op
table; ``--check`` exits 1 if that file is not what the op table says. Works offline; needs
markdown-it-py.
"""

from __future__ import annotations

import argparse
import html
import re
import shutil
import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
REFERENCE = DOCS / "ir-reference.md"
LINK = re.compile(r"\]\(([^)\s]+)\)")
PAGES = (
    "index",
    "concepts",
    "models",
    "cli",
    "plan",
    "look-up-accuracy",
    "look-up-networks",
    "look-up-chains",
    "tuning",
    "tuning-logs",
    "lookup-ffn",
    "lookup-ffn-training",
    "sampled-training",
    "sampled-training-results",
    "weight-codebooks",
    "weight-codebooks-results",
    "compress",
    "gpu",
    "ir-reference",
    "artifact-format",
    "serving-from-c",
    "how-to-add-an-op",
)


def title_of(text: str) -> str:
    """Return a page's first heading."""
    return text.lstrip().splitlines()[0].lstrip("# ").strip()


def slug(heading: str) -> str:
    """Return a heading's anchor, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def render(name: str, texts: dict[str, str]) -> str:
    """Return one page as HTML."""
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(texts[name])
    for index, token in enumerate(tokens):
        if token.type == "heading_open":
            token.attrSet("id", slug(tokens[index + 1].content))
        for child in token.children or []:
            if child.type == "link_open":
                target = str(child.attrGet("href"))
                if "://" not in target:
                    child.attrSet("href", re.sub(r"\.md(?=#|$)", ".html", target))
    body = parser.renderer.render(tokens, parser.options, {})
    links = "\n".join(
        f'<a href="{page}.html"{" class=here" if page == name else ""}>'
        f"{html.escape(title_of(text))}</a>"
        for page, text in texts.items()
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title_of(texts[name]))} - lutcc</title>"
        f'<link rel="stylesheet" href="style.css"></head>\n'
        f'<body><div class="page"><nav><strong>lutcc</strong>\n{links}</nav>\n'
        f"<main>\n{body}</main></div></body></html>\n"
    )


def broken_links(texts: dict[str, str]) -> list[str]:
    """Return every relative link of a page that leads to no page, file or heading."""
    anchors = {
        name: {slug(match) for match in re.findall(r"^#+\s+(.*)$", text, re.MULTILINE)}
        for name, text in texts.items()
    }
    broken = []
    for name, text in texts.items():
        for target in LINK.findall(text):
            if "://" in target:
                continue
            path, _, anchor = target.partition("#")
            page = path.removesuffix(".md") if path else name
            found = page in texts if path.endswith(".md") or not path else (DOCS / path).exists()
            if not found or (anchor and anchor not in anchors.get(page, ())):
                broken.append(f"{name}.md: {target}")
    return broken


def main(argv: list[str] | None = None) -> int:
    """Build, or check, or rewrite the reference."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--reference", action="store_true")
    parser.add_argument("-o", "--output", type=Path, default=DOCS / "_site")
    args = parser.parse_args(argv)
    sys.path.insert(0, str(DOCS.parent))
    from lutcc.ir.docs import op_table_markdown

    reference = op_table_markdown()
    if args.check:
        if REFERENCE.read_text(encoding="utf-8") == reference:
            return 0
        print(
            "docs/ir-reference.md differs from the op table: run docs/build.py --reference",
            file=sys.stderr,
        )
        return 1
    if args.reference:
        REFERENCE.write_text(reference, encoding="utf-8")
        return 0
    texts = {name: (DOCS / f"{name}.md").read_text(encoding="utf-8") for name in PAGES}
    if broken := broken_links(texts):
        print("links that lead nowhere:\n" + "\n".join(broken), file=sys.stderr)
        return 1
    args.output.mkdir(parents=True, exist_ok=True)
    for asset in (DOCS / "style.css", *DOCS.glob("*.png")):
        shutil.copy(asset, args.output)
    for name in texts:
        (args.output / f"{name}.html").write_text(render(name, texts), encoding="utf-8")
    print(args.output / "index.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
