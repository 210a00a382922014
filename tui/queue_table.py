"""A table of the queue's screen: rows with keys, columns as wide as their cells, the last one takes what is left."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.text import Text
from textual.widgets import DataTable

LEAST_LAST = 10  # columns


class QueueTable(DataTable[Text]):
    """Drawn again only where something has changed; its cursor stays on its row."""

    def __init__(self, *titles: str, id: str) -> None:
        super().__init__(id=id, cursor_type="row", cell_padding=1)
        self._titles = titles
        self._rows: list[str] = []
        self._widths: list[int] = []

    def fill(self, rows: Mapping[str, Sequence[Text]], width: int) -> None:
        """Bring it up to date: a cell for each title in every row; `width` in columns is what there is."""
        self.display = bool(rows)
        widths = self._fitting(rows, width)
        if list(rows) != self._rows or widths != self._widths:
            self._fill_anew(rows, widths)
            return
        for key, cells in rows.items():
            for title, cell in zip(self._titles, cells, strict=True):
                # texts of another colour are equal, to rich
                if (before := self.get_cell(key, title)) != cell or before.style != cell.style:
                    self.update_cell(key, title, cell)

    def _fill_anew(self, rows: Mapping[str, Sequence[Text]], widths: list[int]) -> None:
        chosen = self._rows[self.cursor_row] if 0 <= self.cursor_row < len(self._rows) else None
        self.clear(columns=True)
        # Textual would measure them itself, but when it is idle; what it draws before that it keeps, cut off.
        for title, wide in zip(self._titles, widths, strict=True):
            self.add_column(title, key=title, width=wide)
        for key, cells in rows.items():
            self.add_row(*cells, key=key)
        self._rows, self._widths = list(rows), widths
        if chosen is not None and chosen in rows:
            self.move_cursor(row=self._rows.index(chosen))

    def _fitting(self, rows: Mapping[str, Sequence[Text]], width: int) -> list[int]:
        *titles, _ = self._titles
        wide = [max([len(title), *(row[i].cell_len for row in rows.values())]) for i, title in enumerate(titles)]
        # a scrollbar takes one
        left = width - 1 - sum(wide) - 2 * self.cell_padding * len(self._titles)
        return [*wide, max(LEAST_LAST, left)]
