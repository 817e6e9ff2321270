"""HTML that is safe by construction: what is not `Html` already is escaped when it goes into an element."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from html import escape

_FOLDED_ABOVE = 20
"""A longer section is folded, so that what follows it is found."""
_VOID = frozenset({"meta", "path", "rect", "line"})


class Html(str):
    """Markup of ours."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | float | None) -> Html:
    """Return an element. `class_` gives `class`, `stroke_width` gives `stroke-width`, None leaves out."""
    words = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Html(f"<{name}{words}>" if name == "meta" else f"<{name}{words}/>")
    return Html(f"<{name}{words}>{joined(children)}</{name}>")


def joined(children: Iterable[str]) -> Html:
    """Return the children one after another; texts are escaped."""
    return Html("".join(child if isinstance(child, Html) else escape(child) for child in children))


def foreign(text: str) -> Html:
    """Return a text that another machine wrote: its writing direction ends where it ends."""
    return element("bdi", text)


def table(
    caption: str, head: Mapping[str, str], rows: Iterable[Iterable[str]], *, class_: str | None = None
) -> Html:
    """Return a table that scrolls sideways by itself; `head` maps each column's title to its class."""
    titles = [element("th", title, scope="col", class_=kind or None) for title, kind in head.items()]
    body = [
        element(
            "tr",
            *(
                element("td", cell, class_=kind or None)
                for cell, kind in zip(row, head.values(), strict=True)
            ),
        )
        for row in rows
    ]
    whole = element(
        "table",
        element("caption", caption),
        element("thead", element("tr", *titles)),
        element("tbody", *body),
        class_=class_,
    )
    # Whoever has no mouse scrolls with the keys: a scrolling region must take the focus.
    return element("div", whole, class_="scroll", role="region", tabindex=0, aria_label=caption)


def section(title: str, count: int, note: str, content: Html) -> Html:
    """Return a section that folds, with the number of what is in it."""
    heading = element("h2", title)
    if not count:
        return element("section", heading, element("p", "None.", class_="none"))
    summary = element("summary", heading, element("span", f"{count:,}{note and ', ' + note}"))
    return element("details", summary, content, open=None if count > _FOLDED_ABOVE else "")
