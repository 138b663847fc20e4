"""The figure that plots return. Importing this imports Matplotlib."""

from __future__ import annotations

import io

from matplotlib.figure import Figure

_DPI = 110


class Canvas(Figure):
    """Figure outside pyplot, which would keep it and show it a second time; notebooks show it as PNG."""

    def _repr_png_(self) -> bytes:
        return self.png()

    def png(self) -> bytes:
        """Return the figure as a PNG file; equal figures give equal bytes."""
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        return file.getvalue()
