"""The explorer: what one or two runs make of an image and a question (notebooks/explorer.py).

`look` measures a run, without a browser, a kernel or a profile; `session` turns a choice into what is to be drawn;
`widget` and `widget.js` draw it.
"""

from workbook.explorer.session import Choice, Session, of_profile

__all__ = ["Choice", "Session", "of_profile"]
