from __future__ import annotations
def curve_svg(r): return ""
def markdown(r): return ""
